package outbox

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace/internal/confirmation"
	"github.com/millrace-go/millrace/internal/meta"
	"github.com/millrace-go/millrace/internal/txn"
)

// Confirming is what concerns messages whose policy is AwaitConfirmation.
type Confirming struct {
	// Topic is where consumers confirm; it travels with each message. Default "millrace.confirmations".
	// Services that share a broker want a topic each.
	Topic string
	// PerSecond bounds how many unconfirmed messages a forwarder sends again in a second, so that an
	// outage does not end in a storm. Default 100.
	PerSecond float64
	// OnDead is called in the transaction that ends an unconfirmed message as dead, whose context it
	// gets: what it writes and publishes there is committed with it. On an error the message stays as it
	// was, and OnDead is called again later.
	OnDead func(ctx context.Context, r Record) error
	// Keys, if there are any, are those with which consumers may sign (middleware.ConfirmConfig.Key), each of at least
	// 32 bytes. A confirmation that none of them has signed is dropped, and counted: see Box.Forged. While a key is
	// changed, name the new one and the old one.
	Keys [][]byte
	// OnLate is told of a confirmation that came when the message was dead already.
	OnLate func(ctx context.Context, r Record, c Confirmed)
}

const defaultConfirmTopic = "millrace.confirmations"

func (c Confirming) check() error {
	var errs []error
	if c.Topic != "" {
		if err := checkText("topic", c.Topic, 1, maxTopic); err != nil {
			errs = append(errs, fmt.Errorf("outbox: Config.Confirming.Topic: %w", err))
		}
	}
	if c.PerSecond < 0 {
		errs = append(errs, errors.New("outbox: Config.Confirming.PerSecond is negative"))
	}
	for i, key := range c.Keys {
		if len(key) < confirmation.MinKey {
			errs = append(errs, fmt.Errorf("outbox: Config.Confirming.Keys[%d] has %d bytes: at least %d", i, len(key), confirmation.MinKey))
		}
	}
	return errors.Join(errs...)
}

func (c Confirming) withDefaults() Confirming {
	if c.Topic == "" {
		c.Topic = defaultConfirmTopic
	}
	if c.PerSecond == 0 {
		c.PerSecond = 100
	}
	return c
}

// ConfirmTopic is the topic that Confirmations handles.
func (b *Box) ConfirmTopic() string { return b.cfg.Confirming.withDefaults().Topic }

// Confirmations is the handler for the confirmations of consumers:
//
//	router.AddConsumerHandler("confirmations", box.ConfirmTopic(), subscriber, box.Confirmations)
//
// A message has one confirmation, or up to 256 of them as a JSON array. A confirmation counts whatever the state of its
// message: one that overtakes the forwarder is found when the message has been sent, and one that comes when the message
// is dead is kept, and told to OnLate. One that cannot be read, or is not signed as Confirming.Keys ask, is logged and
// dropped, and those that came with it count. Confirmations may come twice, and in any order.
func (b *Box) Confirmations(msg *message.Message) error {
	ctx := msg.Context()
	var words []confirmation.Confirmation
	said := confirmation.ParseAll(msg.Payload, b.cfg.Confirming.Keys)
	for _, s := range said {
		if s.Err == nil {
			words = append(words, s.Confirmation)
		}
	}
	if err := b.confirm(ctx, words); err != nil {
		if len(words) == 1 {
			return fmt.Errorf("outbox: confirmation of %q: %w", words[0].ID, err)
		}
		return fmt.Errorf("outbox: %d confirmations, of %q and others: %w", len(words), words[0].ID, err)
	}
	for _, s := range said { // not before: a message that comes again is not to be counted again
		switch {
		case errors.Is(s.Err, confirmation.ErrUnsigned):
			b.store.compensation.forged.Add(1)
			b.log.WarnContext(ctx, "a confirmation that nobody has signed was dropped", "message_id", s.ID, "group", s.Group)
		case s.Err != nil:
			b.log.WarnContext(ctx, "a confirmation that is none was dropped", "message_id", msg.UUID, "error", s.Err)
		}
	}
	return nil
}

// Forged is how many confirmations Confirmations has dropped because none of Confirming.Keys had signed them.
func (b *Box) Forged() uint64 { return b.store.compensation.forged.Load() }

// ConfirmationsPlugin adds Confirmations to a router, as the handler "millrace.confirmations".
func (b *Box) ConfirmationsPlugin(sub message.Subscriber) message.RouterPlugin {
	return func(r *message.Router) error {
		if sub == nil {
			return errors.New("outbox: ConfirmationsPlugin: no subscriber")
		}
		r.AddConsumerHandler("millrace.confirmations", b.ConfirmTopic(), sub, b.Confirmations)
		return nil
	}
}

// metadata are what a message tells middleware.Confirm.
func (p Policy) metadata(topic string) map[string]string {
	return map[string]string{
		meta.Confirm: topic,
		meta.MaxAge:  strconv.FormatInt(p.withDefaults().MaxAge.Milliseconds(), 10),
	}
}

// within is byHand in a transaction that ctx carries, for what calls the user's functions.
func (b *Box) within(ctx context.Context, what string, fn func(ctx context.Context, h hand) error) error {
	pool, ok := b.pool.(txn.Beginner)
	if !ok {
		return fmt.Errorf("outbox: %s: %w", what, txn.ErrUnsupported)
	}
	if _, err := b.store.dialect(ctx); err != nil {
		return err
	}
	kind, err := b.pool.Dialect(ctx)
	if err != nil {
		return explain(what, err)
	}
	o := txn.Options{Propagation: txn.RequiresNew}
	if kind != txn.SQLite {
		o.Isolation = sql.LevelReadCommitted
	}
	return txn.Run(ctx, pool, o, func(ctx context.Context, tx *txn.Tx) error { return fn(ctx, hand{tx, b, kind}) })
}
