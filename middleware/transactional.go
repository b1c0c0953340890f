package middleware

import (
	"context"
	"errors"
	"fmt"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/dedup"
	"github.com/millrace-go/millrace/internal/delivery"
)

// TransactionalConfig is the configuration of Transactional. The zero value is right for handlers that
// return no messages.
type TransactionalConfig struct {
	// Consumer is the name under which messages are remembered. Default: the name of the router's
	// handler. See IdempotentConfig.Consumer.
	Consumer string
	// Outbox takes the messages that the handler returns, in its transaction: outbox.Box.Publisher.
	Outbox message.Publisher
	// Topic is where they go. Default: the publish topic of the router's handler.
	Topic string
	// Options are those of the transactions. After a deadlock or a serialization failure the
	// handler runs again, up to three times, unless millrace.Retries says otherwise here.
	Options []millrace.TxOption
	// OnEvent is called, if set, once for each delivery: handled, duplicate, or released.
	OnEvent func(Event, *message.Message)
}

// ErrRolledBack: the handler returned no error and yet had its transaction rolled back. The message is
// not acknowledged.
var ErrRolledBack = errors.New("middleware: the handler of Transactional returned nil and marked its transaction for rollback")

// ErrNoOutbox: the handler returned messages, and Transactional has no Outbox or topic for them.
var ErrNoOutbox = errors.New("middleware: the handler of Transactional returned messages, but there is no Outbox and topic to send them to")

// Transactional runs the handler in a transaction whose first statement records the message in the
// inbox. What the handler writes with the context of the message (see millrace.InTx) and what it
// publishes to the outbox is committed with that record, or not at all: the effect happens exactly
// once.
//
// A copy of a message that was handled is acknowledged without running the handler. A copy that comes
// while the message is being handled waits for the end of that transaction. The transaction is rolled
// back when the handler fails and when an inner middleware put the message aside.
//
// Messages that the handler returns go to the outbox inside the transaction, with ids made by
// dedup.DerivedID, and none is passed on to the router.
//
// It belongs inside Retry: each attempt is a transaction of its own.
func Transactional[T any](db millrace.TxDB[T], inbox dedup.Inbox, cfg TransactionalConfig) (message.HandlerMiddleware, error) {
	var errs []error
	if any(db) == nil {
		errs = append(errs, errors.New("middleware: Transactional: no database"))
	}
	if inbox == nil {
		errs = append(errs, errors.New("middleware: Transactional: no inbox"))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if cfg.OnEvent == nil {
		cfg.OnEvent = func(Event, *message.Message) {}
	}
	t := &transactional{db: db, cfg: cfg, inbox: inbox, consumer: consumer{name: cfg.Consumer}}
	// A transaction of its own: one that somebody else ends would be committed after the acknowledgement.
	options := append([]millrace.TxOption{millrace.RequiresNew(), millrace.Retries(3)}, cfg.Options...)
	inTx := func(ctx context.Context, fn func(context.Context) error) error {
		return millrace.InTx(ctx, db, func(ctx context.Context, _ T) error { return fn(ctx) }, options...)
	}
	return func(next message.HandlerFunc) message.HandlerFunc {
		return func(msg *message.Message) ([]*message.Message, error) {
			return delivery.Run(msg, func(rec *delivery.Record) ([]*message.Message, error) {
				return nil, t.handle(msg, rec, inTx, next)
			})
		}
	}, nil
}

type transactional struct {
	db       millrace.DB
	cfg      TransactionalConfig
	inbox    dedup.Inbox
	consumer consumer
}

func (t *transactional) handle(msg *message.Message, rec *delivery.Record,
	inTx func(context.Context, func(context.Context) error) error, next message.HandlerFunc) error {
	key, err := t.consumer.key(msg)
	if err != nil {
		return err
	}
	outer := msg.Context()
	defer msg.SetContext(outer)
	event, begun, committed := EventReleased, false, false
	err = inTx(outer, func(ctx context.Context) error {
		event, begun = EventReleased, true
		rec.Set(delivery.Open)
		msg.SetContext(ctx)
		switch seen, err := t.inbox.Seen(ctx, key); {
		case err != nil:
			// Of the database, not of the message: it must not poison it.
			return postponed(fmt.Errorf("middleware: Transactional: %w", err), refusedDelay)
		case seen:
			event = EventDuplicate
			rec.Set(delivery.Done)
			return millrace.MarkRollbackOnly(ctx, millrace.For(t.db))
		}
		out, err := next(msg)
		switch err := rec.Judge(err); {
		case err != nil:
			return err
		case rec.Outcome() != delivery.Done:
			return millrace.MarkRollbackOnly(ctx, millrace.For(t.db))
		}
		event = EventHandled
		return errors.Join(t.send(ctx, msg, key, out), rec.RunWithin(ctx),
			millrace.AfterCommit(ctx, func(context.Context) error { committed = true; return nil }, millrace.For(t.db)))
	})
	switch {
	case err == nil && event == EventHandled && committed:
		rec.SetCommitted()
	case err == nil && event == EventHandled:
		err = ErrRolledBack
	case unknown(err), err != nil && !begun:
		err = postponed(err, refusedDelay) // an outage says nothing about the message
	}
	if err != nil {
		rec.Set(delivery.Failed)
		event = EventReleased
	}
	t.cfg.OnEvent(event, msg)
	return err
}

// unknown reports whether the transaction may have committed. The next delivery finds out.
func unknown(err error) bool {
	var u *millrace.UnknownOutcomeError
	return errors.As(err, &u)
}

// send puts the messages that the handler returned into the outbox, in the transaction of ctx.
func (t *transactional) send(ctx context.Context, msg *message.Message, key dedup.Key, out []*message.Message) error {
	if len(out) == 0 {
		return nil
	}
	topic := t.cfg.Topic
	if topic == "" {
		topic = message.PublishTopicFromCtx(ctx)
	}
	if t.cfg.Outbox == nil || topic == "" {
		return ErrNoOutbox
	}
	msg.SetContext(ctx) // of the transaction; the handler may have left another
	if err := t.cfg.Outbox.Publish(topic, deriveOutputs(msg, key, out)...); err != nil {
		return fmt.Errorf("middleware: Transactional: publish what the handler returned: %w", err)
	}
	return nil
}
