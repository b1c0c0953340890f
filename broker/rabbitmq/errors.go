package rabbitmq

import (
	"errors"
	"fmt"
	"strings"

	amqp091 "github.com/rabbitmq/amqp091-go"
)

var (
	// ErrClosed is returned by calls on a Publisher or Subscriber after its Close.
	ErrClosed = errors.New("rabbitmq: closed")

	// ErrBlocked says that the broker takes no messages at present: it is short of memory or disk.
	ErrBlocked = errors.New("rabbitmq: the broker blocks publishers (memory or disk alarm)")

	// ErrNacked says that the broker did not take the message: its queue is full, or a queue failed.
	ErrNacked = errors.New("rabbitmq: the broker did not take the message (basic.nack)")

	// ErrUnconfirmed says that no confirm came within Config.Timeout. The message may be stored.
	ErrUnconfirmed = errors.New("rabbitmq: not confirmed in time")
)

// Reasons for which a message is refused, as Reason returns them.
const (
	reasonInvalid       = "invalid"        // nil, or without a topic
	reasonEncoding      = "encoding"       // cannot be written as an AMQP message
	reasonTooLarge      = "too_large"      // above the limit, ours or the broker's
	reasonNoRoute       = "no_route"       // no queue is bound for it
	reasonNoExchange    = "no_exchange"    // its exchange does not exist
	reasonAccessRefused = "access_refused" // the user may not write there
	reasonPrecondition  = "precondition"   // a property that the broker rejects
	reasonTopology      = "topology"       // exchange or queue cannot be declared as configured
	reasonChannelClosed = "channel_closed" // the broker closes the channel over it
)

// refusal is the error of a message that will fail again if it is sent again.
type refusal struct {
	reason string
	err    error
}

func refuse(reason, format string, args ...any) *refusal {
	return &refusal{reason: reason, err: fmt.Errorf(format, args...)}
}

func (r *refusal) Error() string  { return "rabbitmq: refused (" + r.reason + "): " + r.err.Error() }
func (r *refusal) Unwrap() error  { return r.err }
func (r *refusal) Refused() bool  { return true }
func (r *refusal) Reason() string { return r.reason }

// refusalOf is the refusal of the message over which the broker closed its channel.
func refusalOf(closed *amqp091.Error) *refusal {
	reason := reasonChannelClosed
	switch {
	case closed.Code == amqp091.NotFound:
		reason = reasonNoExchange
	case closed.Code == amqp091.AccessRefused:
		reason = reasonAccessRefused
	case closed.Code == amqp091.ContentTooLarge, strings.Contains(closed.Reason, "message size"):
		reason = reasonTooLarge
	case closed.Code == amqp091.PreconditionFailed:
		reason = reasonPrecondition
	}
	return refuse(reason, "%w", closed)
}

// setupError is an error that no waiting mends, with what mends it.
type setupError struct {
	err    error
	remedy string
}

func (s *setupError) Error() string { return s.err.Error() + "; " + s.remedy }
func (s *setupError) Unwrap() error { return s.err }
func (s *setupError) Setup() bool   { return true }

func isSetup(err error) bool {
	var s interface{ Setup() bool }
	return errors.As(err, &s) && s.Setup()
}

// loginError gives an error of the connection's first steps its meaning. place is where it was
// tried, without user and password.
func loginError(place string, err error) error {
	err = fmt.Errorf("rabbitmq: connect to %s: %w", place, err)
	var e *amqp091.Error
	if !errors.As(err, &e) || !e.Server {
		return err
	}
	switch {
	case e.Code == amqp091.AccessRefused:
		return &setupError{err, "correct user and password of Config.URL"}
	case e.Code != amqp091.NotAllowed || strings.Contains(e.Reason, "limit") || strings.Contains(e.Reason, "down"):
		return err // a limit reached, a vhost that is starting: it passes
	case strings.Contains(e.Reason, "not found"):
		return &setupError{err, "create the vhost (rabbitmqctl add_vhost) or correct Config.URL"}
	}
	return &setupError{err, "grant the user access to the vhost (rabbitmqctl set_permissions) or correct Config.URL"}
}
