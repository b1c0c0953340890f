package redisstreams

import (
	"errors"
	"fmt"
	"strings"

	"github.com/redis/go-redis/v9"
)

// ErrClosed is returned by calls on a Publisher or Subscriber after its Close.
var ErrClosed = errors.New("redisstreams: closed")

// errBehind is the answer for a message that was not sent, because one of its key before it failed.
var errBehind = errors.New("redisstreams: not sent: an earlier message of its key failed")

// refusal is the error of a message that will fail again if it is sent again.
type refusal struct {
	reason string
	err    error
}

func (r *refusal) Error() string  { return "redisstreams: refused (" + r.reason + "): " + r.err.Error() }
func (r *refusal) Unwrap() error  { return r.err }
func (r *refusal) Refused() bool  { return true }
func (r *refusal) Reason() string { return r.reason }

func isRefusal(err error) bool { return errors.As(err, new(*refusal)) }

// setupError is an error that no waiting mends, with what mends it.
type setupError struct {
	remedy string
	err    error
}

func (s *setupError) Error() string { return "redisstreams: " + s.err.Error() + "; " + s.remedy }
func (s *setupError) Unwrap() error { return s.err }
func (s *setupError) Setup() bool   { return true }

func isSetup(err error) bool {
	var s interface{ Setup() bool }
	return errors.As(err, &s) && s.Setup()
}

// serverError is the error of a script's entry: the text of a Redis error reply.
type serverError string

func (e serverError) Error() string { return string(e) }
func (serverError) RedisError()     {}

// classify gives an error of Redis its meaning. What it does not know is taken for an outage: the
// worst that comes of it is another try.
func classify(err error) error {
	var reply redis.Error
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &reply):
		return fmt.Errorf("redisstreams: %w", err)
	}
	text := strings.TrimPrefix(reply.Error(), "-")
	has := func(prefix string) bool { return strings.HasPrefix(text, prefix) }
	switch {
	case has("WRONGTYPE"):
		return &refusal{reason: "wrong_type", err: errors.New("the topic's key exists and is not a stream")}
	case has("ERR Elements are too large"):
		return &refusal{reason: "too_large", err: err}
	case has("NOAUTH"), has("WRONGPASS"), has("ERR AUTH"), has("ERR invalid password"), has("ERR Client sent AUTH"):
		return &setupError{remedy: "correct user and password of the Redis client", err: err}
	case has("NOPERM"), has("ERR The user executing the script"):
		return &setupError{remedy: "grant the Redis user @stream, @scripting, @connection and info on the topics' keys", err: err}
	case has("ERR DB index"), has("ERR invalid DB index"):
		return &setupError{remedy: "correct the database number of the Redis client", err: err}
	case has("ERR unknown command"):
		// The rest of the reply quotes the arguments, and with them the payload.
		what, _, _ := strings.Cut(text, ", with args")
		return &setupError{remedy: "Redis 6.2 or newer with EVALSHA and stream commands is needed", err: serverError(what)}
	}
	return fmt.Errorf("redisstreams: %w", err)
}

func hasPrefix(err error, prefix string) bool {
	return redis.HasErrorPrefix(err, prefix) || redis.HasErrorPrefix(err, "-"+prefix)
}
