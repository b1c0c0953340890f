// Package redisdedup is a dedup.Store in Redis or Valkey, version 6 or newer: one node, Sentinel or
// Cluster.
//
// # What it promises, and what not
//
// A record is one hash under one key, changed by one script at a time, measured by the server's clock.
// While the server remembers, one delivery of a message runs at a time and a late owner is told that
// it lost.
//
// A Redis server forgets when it is restarted without an append-only file, when a replica that had not
// received a record is promoted, and when it evicts. Eviction is refused by Check; the other two can
// only be made rare. A message may then be handled twice. Where that must not be, use dedup.Inbox.
//
// # Round trips
//
// Calls that are made while others are under way share round trips with each other, so that a hundred
// messages handled at once cost little more than one. A call that is alone departs at once. Store has
// no goroutine when no call is under way, and nothing to close. A call whose context ends returns at
// once, and what it asked for may still happen.
//
// A done record takes about 0.3 kB, so a day of a million messages takes about 0.3 GB.
package redisdedup

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/millrace-go/millrace/dedup"
	"github.com/millrace-go/millrace/internal/redisserver"
)

// Config says where the records are kept. Only Namespace is required.
type Config struct {
	// Namespace begins every key: usually the name of the service. No braces and no white space, at
	// most 128 bytes.
	Namespace string
	// Logger receives what Check cannot find out or thinks unwise. Default: none.
	Logger *slog.Logger
}

// Store is a dedup.Store in Redis. It is safe for concurrent use.
type Store struct {
	rdb    redis.UniversalClient
	cfg    Config
	err    error // of the configuration
	shards shards
}

var _ dedup.Store = (*Store)(nil)

// New returns a Store on the caller's client, which stays the caller's to close. It calls nobody.
// What is wrong with the configuration is reported by Validate and by every method; the constructors
// of package middleware ask for it.
//
// Give the client ContextTimeoutEnabled, so that a call ends when its context does.
func New(rdb redis.UniversalClient, cfg Config) *Store {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Store{rdb: rdb, cfg: cfg, err: validate(rdb, cfg), shards: shards{rdb: rdb}}
}

// Validate reports all that is wrong with the configuration.
func (s *Store) Validate() error { return s.err }

func validate(rdb redis.UniversalClient, cfg Config) error {
	var errs []error
	if rdb == nil {
		errs = append(errs, errors.New("redisdedup: no Redis client"))
	}
	if err := redisserver.CheckNamespace(cfg.Namespace); err != nil {
		errs = append(errs, fmt.Errorf("redisdedup: %w", err))
	}
	return errors.Join(errs...)
}

// Claim implements dedup.Store.
func (s *Store) Claim(ctx context.Context, key dedup.Key, req dedup.Request) (dedup.Answer, error) {
	if err := errors.Join(s.err, key.Check(), req.Check()); err != nil {
		return dedup.Answer{}, err
	}
	cmd, err := s.run(ctx, claim, key, req.Owner, millis(req.Lease), millis(req.TTL), req.Digest)
	if err != nil {
		return dedup.Answer{}, fmt.Errorf("redisdedup: claim: %w", err)
	}
	reply, _ := cmd.Slice()
	answer, ok := decodeAnswer(reply)
	if !ok {
		return dedup.Answer{}, fmt.Errorf("redisdedup: claim: the server's answer is not understood (%d values)", len(reply))
	}
	return answer, nil
}

func decodeAnswer(reply []any) (a dedup.Answer, ok bool) {
	if len(reply) != 3 {
		return a, false
	}
	verdict, _ := reply[0].(string)
	switch verdict {
	case "CLAIMED":
		fence, ok1 := reply[1].(int64)
		attempts, ok2 := reply[2].(int64)
		return dedup.Answer{Verdict: dedup.Claimed, Fence: fence, Attempts: int(attempts)}, ok1 && ok2
	case "BUSY":
		ms, ok := reply[1].(int64)
		return dedup.Answer{Verdict: dedup.Busy, Remaining: time.Duration(ms) * time.Millisecond}, ok
	case "DONE":
		result, ok := reply[2].(string)
		return dedup.Answer{Verdict: dedup.Handled, Result: []byte(result)}, ok
	case "REUSED":
		return dedup.Answer{Verdict: dedup.Reused}, true
	}
	return a, false
}

// Renew implements dedup.Store.
func (s *Store) Renew(ctx context.Context, key dedup.Key, owner string, lease time.Duration) (bool, error) {
	if err := errors.Join(s.err, key.Check()); err != nil {
		return false, err
	}
	cmd, err := s.run(ctx, renew, key, owner, millis(lease))
	if err != nil {
		return false, fmt.Errorf("redisdedup: renew: %w", err)
	}
	return cmd.Val() == int64(1), nil
}

// Done implements dedup.Store.
func (s *Store) Done(ctx context.Context, key dedup.Key, owner string, result []byte, ttl time.Duration) (dedup.Mark, error) {
	if err := errors.Join(s.err, key.Check(), dedup.CheckDone(owner, result, ttl)); err != nil {
		return 0, err
	}
	// A nil slice is no argument that Redis knows.
	cmd, err := s.run(ctx, done, key, owner, string(result), millis(ttl))
	if err != nil {
		return 0, fmt.Errorf("redisdedup: done: %w", err)
	}
	switch cmd.Val() {
	case "OK":
		return dedup.Marked, nil
	case "RECREATED":
		return dedup.Recreated, nil
	case "LOST":
		return dedup.Lost, nil
	}
	return 0, fmt.Errorf("redisdedup: done: the server's answer is not understood")
}

// Release implements dedup.Store.
func (s *Store) Release(ctx context.Context, key dedup.Key, owner string, fresh bool) error {
	if err := errors.Join(s.err, key.Check()); err != nil {
		return err
	}
	flag := 0
	if fresh {
		flag = 1
	}
	if _, err := s.run(ctx, release, key, owner, flag); err != nil {
		return fmt.Errorf("redisdedup: release: %w", err)
	}
	return nil
}

// run runs a script on the record of k, in the name of owner.
func (s *Store) run(ctx context.Context, script *redis.Script, k dedup.Key, owner string, args ...any) (*redis.Cmd, error) {
	key := recordKey(s.cfg.Namespace, k)
	return s.shards.of(ctx, key).do(&call{
		ctx: ctx, id: key + " " + owner, script: script, key: key, args: append([]any{owner}, args...),
	})
}

// millis rounds up: a lease of a fraction of a millisecond is not none.
func millis(d time.Duration) int64 { return int64((d + time.Millisecond - 1) / time.Millisecond) }
