package middleware

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace/internal/confirmation"
	"github.com/millrace-go/millrace/internal/delivery"
	"github.com/millrace-go/millrace/internal/meta"
)

// ConfirmConfig is the configuration of Confirm. Group and Publisher are required.
type ConfirmConfig struct {
	// Group is the name of this consumer group, as the producer's policy has it.
	Group string
	// Publisher sends confirmations to the broker. It has to return nil only when one is stored there. The
	// confirmations of messages that end at the same time travel in one message.
	Publisher message.Publisher
	// Outbox, if set, takes the confirmation in the transaction of a handler under Transactional:
	// outbox.Box.Publisher. Without it, or without a transaction, the Publisher has it right after.
	Outbox message.Publisher
	// Topic is where confirmations go. Default: where each message says.
	Topic string
	// Key, if set, signs each confirmation: one of the producer's outbox.Confirming.Keys, of at least 32 bytes.
	Key []byte
	// Background acknowledges a message without waiting for the broker to have its direct confirmation, which departs
	// some 10 ms later, with those that were made meanwhile. That costs next to nothing; a confirmation that an outage or the
	// end of the process then loses costs the producer's deadline, and a copy that is confirmed again. At most 1000 are
	// under way. A message that finds no room waits for it, up to Timeout and while its context lasts, and is nacked then.
	Background bool
	// Timeout is how long a message may wait for its confirmation, and a call of Publisher may take. Default 10 s.
	Timeout time.Duration
	// Logger receives what goes wrong, ids only. Default: none.
	Logger *slog.Logger
}

// Confirm tells the producer that this group is done with a message, if the message asks for it: one
// whose topic has the policy outbox.AwaitConfirmation. Others pass untouched.
//
// It confirms when the handler has succeeded, and again for each copy of a message that was done
// before: the earlier word may be lost. If it cannot (and is not to do so in the background), the message is nacked,
// and confirmed when it comes back; so Idempotent or Transactional belongs inside of it. When the message was given
// up for good, the producer hears that it failed, and which of its sendings that was.
func Confirm(cfg ConfirmConfig) (message.HandlerMiddleware, error) {
	orDefault(&cfg.Timeout, 10*time.Second)
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if err := cfg.check(); err != nil {
		return nil, err
	}
	c := &confirmer{
		cfg: cfg, batches: confirmBatches{pub: cfg.Publisher, timeout: cfg.Timeout, most: confirmFlights}, slots: make(chan struct{}, confirmSlots),
	}
	if cfg.Background {
		c.batches.most, c.batches.linger = 1, backgroundLinger
	}
	return func(next message.HandlerFunc) message.HandlerFunc {
		return func(msg *message.Message) ([]*message.Message, error) {
			topic := msg.Metadata[meta.Confirm]
			if topic == "" {
				return next(msg)
			}
			if cfg.Topic != "" {
				topic = cfg.Topic
			}
			return delivery.Run(msg, func(rec *delivery.Record) ([]*message.Message, error) {
				return c.handle(msg, topic, rec, next)
			})
		}
	}, nil
}

func (c ConfirmConfig) check() error {
	var errs []error
	if _, err := (confirmation.Confirmation{ID: "any", Group: c.Group, Outcome: confirmation.Done}).Message(); err != nil {
		errs = append(errs, fmt.Errorf("middleware: Confirm: Group %q: want 1 to 100 bytes of text", c.Group))
	}
	if len(c.Key) > 0 && len(c.Key) < confirmation.MinKey {
		errs = append(errs, fmt.Errorf("middleware: Confirm: Key has %d bytes: at least %d", len(c.Key), confirmation.MinKey))
	}
	if c.Publisher == nil {
		errs = append(errs, errors.New("middleware: Confirm: no Publisher"))
	}
	if c.Timeout < 0 {
		errs = append(errs, fmt.Errorf("middleware: Confirm: Timeout %s is negative", c.Timeout))
	}
	return errors.Join(errs...)
}

type confirmer struct {
	cfg     ConfirmConfig
	batches confirmBatches
	slots   chan struct{} // of confirmations in the background
}

const confirmSlots = 1000

func (c *confirmer) handle(msg *message.Message, topic string, rec *delivery.Record, next message.HandlerFunc) ([]*message.Message, error) {
	// The handler may change the message.
	ctx, about := msg.Context(), confirmation.Confirmation{ID: msg.UUID, Group: c.cfg.Group, Sending: confirmation.Answered(msg.Metadata)}
	if c.cfg.Outbox != nil {
		rec.Within(func(tx context.Context) error {
			said, err := c.word(about, confirmation.Done, "")
			if err != nil {
				return err
			}
			said.SetContext(tx)
			return c.cfg.Outbox.Publish(topic, said)
		})
	}
	rec.AtEnd(func(o delivery.Outcome) {
		if o == delivery.Poisoned {
			if err := c.tell(ctx, topic, about, confirmation.Failed, lastReason(rec)); err != nil {
				c.cfg.Logger.WarnContext(ctx, "the producer was not told that a message failed", "message_id", about.ID, "error", err)
			}
		}
	})
	out, err := next(msg)
	if err = rec.Judge(err); err != nil || rec.Outcome() != delivery.Done || rec.Committed() {
		return out, err
	}
	say := func() error { return c.tell(ctx, topic, about, confirmation.Done, "") }
	if c.cfg.Background {
		say = func() error { return c.tellLater(ctx, topic, about) }
	}
	if err := say(); err != nil {
		rec.Set(delivery.Failed)
		return nil, postponed(fmt.Errorf("middleware: Confirm: %w", err), refusedDelay)
	}
	return out, nil
}

// lastReason is why the message was given up, as a short code.
func lastReason(rec *delivery.Record) string {
	if h := rec.History(); len(h) > 0 && h[len(h)-1].Reason != "" {
		return h[len(h)-1].Reason
	}
	return "poisoned"
}

func (c *confirmer) word(about confirmation.Confirmation, outcome confirmation.Outcome, reason string) (*message.Message, error) {
	about.Outcome, about.Reason, about.At = outcome, reason, time.Now().UTC()
	if len(c.cfg.Key) > 0 {
		about = about.Sign(c.cfg.Key)
	}
	return about.Message()
}

// tellLater sends a confirmation while the message is acknowledged. An error says that there was no room.
func (c *confirmer) tellLater(ctx context.Context, topic string, about confirmation.Confirmation) error {
	if err := c.room(ctx); err != nil {
		return err
	}
	landed := func(err error) {
		<-c.slots
		if err != nil {
			c.cfg.Logger.WarnContext(ctx, "a message was not confirmed, and will come again", "message_id", about.ID, "error", err)
		}
	}
	said, err := c.word(about, confirmation.Done, "")
	if err != nil {
		landed(err)
		return nil
	}
	said.SetContext(context.WithoutCancel(ctx))
	c.batches.add(&confirmCall{topic, said, landed})
	return nil
}

// room waits for a slot: no longer than the message has, or a shutdown would wait for a broker that is away.
func (c *confirmer) room(ctx context.Context) error {
	select {
	case c.slots <- struct{}{}:
		return nil
	default:
	}
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	select {
	case c.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%d confirmations are under way: %w", confirmSlots, ctx.Err())
	}
}

// tell sends a confirmation, also when ctx has ended: the message has been handled.
func (c *confirmer) tell(ctx context.Context, topic string, about confirmation.Confirmation, outcome confirmation.Outcome, reason string) error {
	said, err := c.word(about, outcome, reason)
	if err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	said.SetContext(ctx)
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	return c.batches.publish(ctx, topic, said)
}
