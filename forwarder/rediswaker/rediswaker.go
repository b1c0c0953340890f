// Package rediswaker carries the wake-up of an outbox over Redis, for databases that have nothing like
// NOTIFY, MySQL above all: a forwarder hears at once of what another process has committed.
//
//	box, err := outbox.New(db, outbox.Config{Waker: rediswaker.New(rdb, rediswaker.Config{})})
//
// Redis is not asked for more than that: while it is down, messages are found by polling.
package rediswaker

import (
	"context"
	"errors"
	"fmt"

	"github.com/redis/go-redis/v9"
)

// Config is the configuration of a Waker. The zero value is right for one outbox per Redis.
type Config struct {
	// Channel is the pub/sub channel. Processes with the same one hear each other, in every database of
	// the Redis: pub/sub knows none. Outboxes that share one wake each other's forwarders for nothing.
	// Default "millrace".
	Channel string
}

// Waker is an outbox.Waker over Redis pub/sub. Safe for concurrent use. It holds nothing that needs
// closing.
type Waker struct {
	client  redis.UniversalClient
	channel string
}

// New makes a Waker on a client that stays the caller's. It asks Redis nothing. A nil client panics.
func New(client redis.UniversalClient, cfg Config) *Waker {
	if client == nil {
		panic("rediswaker: New wants a Redis client")
	}
	if cfg.Channel == "" {
		cfg.Channel = "millrace"
	}
	return &Waker{client: client, channel: cfg.Channel}
}

// Send implements outbox.Waker.
func (w *Waker) Send(ctx context.Context, note string) error {
	if err := w.client.Publish(ctx, w.channel, note).Err(); err != nil {
		return fmt.Errorf("rediswaker: publish: %w", err)
	}
	return nil
}

// Listen implements outbox.Waker.
func (w *Waker) Listen(ctx context.Context, ready func(), heard func(note string)) error {
	sub := w.client.Subscribe(ctx, w.channel)
	defer sub.Close()
	// A read that waits does not look at its context.
	stop := context.AfterFunc(ctx, func() { _ = sub.Close() })
	defer stop()
	for {
		msg, err := sub.Receive(ctx)
		switch msg := msg.(type) {
		case *redis.Subscription:
			ready()
		case *redis.Message:
			heard(msg.Payload)
		}
		if err != nil {
			return fmt.Errorf("rediswaker: listen: %w", errors.Join(ctx.Err(), err))
		}
	}
}
