package middleware

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace/internal/delivery"
	"github.com/millrace-go/millrace/internal/meta"
)

// Metadata of a message in the poison queue, beside its own.
const (
	MetaReason   = meta.Reason              // the code given by WithReason, or "timeout", "panic", "permanent", "failed"
	MetaError    = meta.Error               // the text of the error, one line of at most 500 bytes
	MetaTopic    = meta.Destination         // the topic that the message came from
	MetaHandler  = meta.Prefix + "handler"  // the handler that could not cope with it
	MetaAttempts = meta.Prefix + "attempts" // how often handling was begun, if Idempotent counted
	MetaDeadAt   = meta.Prefix + "dead_at"  // when it was given up, RFC 3339
)

// PoisonConfig is the configuration of PoisonQueue. Publisher and Topic are required.
type PoisonConfig struct {
	// Publisher stores the message: it has to return nil only when it is stored.
	Publisher message.Publisher
	// Topic is where to. Not the topic that is consumed.
	Topic string
	// Timeout is the deadline of the publish, which the end of the message's own context does not
	// shorten. Default 10 s.
	Timeout time.Duration
	// Keep, if set, names the errors for which a message is not given up but nacked.
	Keep func(error) bool
	// Logger receives what was given up, without payload and metadata. Default: none.
	Logger *slog.Logger
	// OnPoisoned is called, if set, when a message has been stored.
	OnPoisoned func(msg *message.Message, reason string, err error)
}

// PoisonQueue gives up on a message whose handling failed for good: it is published to another topic,
// with its original id, payload and metadata, and why. Then it is acknowledged; never before. If
// publishing fails, the message is nacked.
//
// An error that says nothing about the message leaves it in its queue: the end of the message's
// context (a shutdown), a claim that is held or was lost, a store that is away. An entry that our
// subscribers could not read as a message is given up at once, without the handler.
func PoisonQueue(cfg PoisonConfig) (message.HandlerMiddleware, error) {
	orDefault(&cfg.Timeout, 10*time.Second)
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if err := cfg.check(); err != nil {
		return nil, err
	}
	return func(next message.HandlerFunc) message.HandlerFunc {
		return func(msg *message.Message) ([]*message.Message, error) {
			return delivery.Run(msg, func(rec *delivery.Record) ([]*message.Message, error) {
				// As it came: the handler may write into what it was given.
				dead := message.NewMessage(msg.UUID, slices.Clone(msg.Payload))
				maps.Copy(dead.Metadata, msg.Metadata)
				if err := malformed(msg); err != nil {
					return nil, cfg.giveUp(msg, dead, rec, err)
				}

				out, err := next(msg)
				if err = rec.Judge(err); err == nil || cfg.keeps(msg.Context(), err) {
					return out, err
				}
				return nil, cfg.giveUp(msg, dead, rec, err)
			})
		}
	}, nil
}

// malformed is why the subscriber could not read the entry, nil for an ordinary message. One that comes
// from a poison queue has been through this and is for the handler to look at.
func malformed(msg *message.Message) error {
	if msg.Metadata[meta.Reason] != meta.Malformed || msg.Metadata[MetaDeadAt] != "" {
		return nil
	}
	return WithReason(errors.New(cmp.Or(msg.Metadata[meta.Error], "the entry is not a message")), meta.Malformed)
}

func (c PoisonConfig) check() error {
	var errs []error
	if c.Publisher == nil {
		errs = append(errs, errors.New("middleware: PoisonQueue: no Publisher"))
	}
	if c.Topic == "" {
		errs = append(errs, errors.New("middleware: PoisonQueue: Topic is empty"))
	}
	if c.Timeout < 0 {
		errs = append(errs, fmt.Errorf("middleware: PoisonQueue: Timeout %s is negative", c.Timeout))
	}
	return errors.Join(errs...)
}

func (c PoisonConfig) keeps(ctx context.Context, err error) bool {
	return ctx.Err() != nil || isPostponed(err) || errors.Is(err, ErrSwallowed) || (c.Keep != nil && c.Keep(err))
}

// giveUp stores the message. It returns nil when that is certain.
func (c PoisonConfig) giveUp(msg, dead *message.Message, rec *delivery.Record, cause error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(msg.Context()), c.Timeout)
	defer cancel()
	handler, reason := message.HandlerNameFromCtx(ctx), Reason(cause)
	dead.Metadata[MetaReason] = reason
	dead.Metadata[MetaError] = bounded(cause.Error(), 500)
	dead.Metadata[MetaTopic] = message.SubscribeTopicFromCtx(ctx)
	dead.Metadata[MetaHandler] = handler
	dead.Metadata[MetaDeadAt] = time.Now().UTC().Format(time.RFC3339)
	if n := rec.Attempts(); n > 0 {
		dead.Metadata[MetaAttempts] = strconv.Itoa(n)
	}
	dead.SetContext(ctx)
	if err := c.Publisher.Publish(c.Topic, dead); err != nil {
		rec.Set(delivery.Failed)
		return postponed(fmt.Errorf("middleware: store in the poison queue: %w (after: %w)", err, cause), time.Second)
	}
	rec.Set(delivery.Poisoned)
	c.Logger.ErrorContext(ctx, "message given up", "message_id", msg.UUID, "handler", handler, "topic", c.Topic, "reason", reason)
	if c.OnPoisoned != nil {
		c.OnPoisoned(msg, reason, cause)
	}
	return nil
}
