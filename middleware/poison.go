package middleware

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace/internal/delivery"
	"github.com/millrace-go/millrace/internal/fault"
	"github.com/millrace-go/millrace/internal/meta"
	"github.com/millrace-go/millrace/store"
)

// Metadata of a message in the poison queue, beside its own.
const (
	MetaReason   = meta.Reason              // the code given by WithReason, or "timeout", "panic", "permanent", "failed"
	MetaError    = meta.Error               // the text of the error, one line of at most 500 bytes
	MetaTopic    = meta.Destination         // the topic that the message came from
	MetaHandler  = meta.Prefix + "handler"  // the handler that could not cope with it
	MetaAttempts = meta.Prefix + "attempts" // how often the handler was called, or handling begun, as far as was counted
	MetaHistory  = meta.Prefix + "history"  // how the latest attempts ended: JSON, an array of store.Failure
	MetaDeadAt   = meta.Prefix + "dead_at"  // when it was given up, RFC 3339
)

// PoisonConfig is the configuration of PoisonQueue. Store, or Publisher and Topic, are required; with
// both the message goes to both.
type PoisonConfig struct {
	// Store keeps the message as a dead letter, from where store.Replay gives it back to its handler.
	Store store.Dead
	// Group is the name under which it is kept there. Default: the name of the router's handler. The
	// same as that of DelayedRetry and delayed.Subscriber.
	Group string
	// Publisher publishes the message: it has to return nil only when it is stored.
	Publisher message.Publisher
	// Topic is where to. Not the topic that is consumed.
	Topic string
	// Timeout is the deadline for storing and publishing, which the end of the message's own context does
	// not shorten. Default 10 s.
	Timeout time.Duration
	// Keep, if set, names the errors for which a message is not given up but nacked.
	Keep func(error) bool
	// Logger receives what was given up, without payload and metadata. Default: none.
	Logger *slog.Logger
	// OnPoisoned is called, if set, when a message has been stored.
	OnPoisoned func(msg *message.Message, reason string, err error)
}

// PoisonQueue gives up on a message whose handling failed for good: it is put into a store of dead letters,
// or published to another topic, or both, with its original id, payload and metadata, and why. Then it
// is acknowledged; never before. If that fails, the message is nacked. A message that went to both
// and was then nacked because of the topic is in the store once, and in the topic perhaps twice.
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
				came := rec.Original(msg) // the handler may write into what it is given
				if err := malformed(msg); err != nil {
					return nil, cfg.giveUp(msg, came, rec, err)
				}

				out, err := next(msg)
				if err = rec.Judge(err); err == nil || cfg.keeps(msg.Context(), err) {
					return out, err
				}
				return nil, cfg.giveUp(msg, came, rec, err)
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
	if c.Publisher == nil && (c.Store == nil || c.Topic != "") {
		errs = append(errs, errors.New("middleware: PoisonQueue: no Publisher"))
	}
	if c.Topic == "" && (c.Store == nil || c.Publisher != nil) {
		errs = append(errs, errors.New("middleware: PoisonQueue: Topic is empty"))
	}
	if c.Group != "" {
		if err := store.CheckGroup(c.Group); err != nil {
			errs = append(errs, fmt.Errorf("middleware: PoisonQueue: Group: %w", err))
		}
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
func (c PoisonConfig) giveUp(msg, came *message.Message, rec *delivery.Record, cause error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(msg.Context()), c.Timeout)
	defer cancel()
	handler, reason := message.HandlerNameFromCtx(ctx), Reason(cause)
	attempts := cmp.Or(rec.Calls(), rec.Attempts())
	rec.Note(failure(max(attempts, 1), cause))
	err := c.keep(ctx, came, rec, handler, attempts, cause)
	if err == nil {
		err = c.publish(ctx, came, rec, handler, attempts, cause)
	}
	if err != nil {
		rec.Set(delivery.Failed)
		return postponed(fmt.Errorf("middleware: store in the poison queue: %w (after: %w)", err, cause), time.Second)
	}
	fault.Point("middleware.poisoned")
	rec.Set(delivery.Poisoned)
	c.Logger.ErrorContext(ctx, "message given up", "message_id", msg.UUID, "handler", handler, "topic", c.Topic, "reason", reason)
	if c.OnPoisoned != nil {
		c.OnPoisoned(msg, reason, cause)
	}
	return nil
}

// keep puts the message into the store of dead letters.
func (c PoisonConfig) keep(ctx context.Context, came *message.Message, rec *delivery.Record, handler string, attempts int, cause error) error {
	if c.Store == nil {
		return nil
	}
	l := store.Letter{Reason: Reason(cause), Error: bounded(cause.Error(), 500), Entry: store.Entry{
		Group: cmp.Or(c.Group, handler), MessageID: came.UUID, Topic: message.SubscribeTopicFromCtx(ctx),
		OrderKey: rec.OrderKey(came.Metadata.Get(meta.Key)), Metadata: came.Metadata, Payload: came.Payload, Attempts: attempts,
	}}
	if l.MessageID == "" { // of an entry that is no message; it cannot be told from others, so it is a new one
		l.MessageID = "none-" + rand.Text()
	}
	for _, f := range rec.History() {
		l.History = append(l.History, store.Failure(f))
	}
	return c.Store.Put(ctx, l)
}

// publish publishes the message to the topic.
func (c PoisonConfig) publish(ctx context.Context, came *message.Message, rec *delivery.Record, handler string, attempts int, cause error) error {
	if c.Publisher == nil {
		return nil
	}
	dead := came.Copy()
	dead.Payload = slices.Clone(came.Payload)
	dead.Metadata[MetaReason] = Reason(cause)
	dead.Metadata[MetaError] = bounded(cause.Error(), 500)
	dead.Metadata[MetaTopic] = message.SubscribeTopicFromCtx(ctx)
	dead.Metadata[MetaHandler] = handler
	dead.Metadata[MetaDeadAt] = time.Now().UTC().Format(time.RFC3339)
	if attempts > 0 {
		dead.Metadata[MetaAttempts] = strconv.Itoa(attempts)
	}
	if history, err := json.Marshal(recent(rec)); err == nil {
		dead.Metadata[MetaHistory] = string(history)
	}
	dead.SetContext(ctx)
	return c.Publisher.Publish(c.Topic, dead)
}

// recent are the failures that fit into a header.
func recent(rec *delivery.Record) []store.Failure {
	all := rec.History()
	var few []store.Failure
	for _, f := range all[max(0, len(all)-10):] {
		few = append(few, store.Failure(f))
	}
	return few
}
