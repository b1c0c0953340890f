package main

import (
	"context"
	"errors"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/outbox/half"
)

// errTakenBack rolls an order back.
var errTakenBack = errors.New("the customer has changed his mind")

const topic = "orders.placed"

// styles are four ways to place an order and say so.
var styles = []style{
	{"send inside the transaction", sendInside},
	{"send after COMMIT, by a hook", sendAfter},
	{"outbox and forwarder", viaOutbox},
	{"half message, other database", viaHalfMessage},
}

type style struct {
	name  string
	place func(ctx context.Context, s *shop, order int) error
}

// sendInside is what everybody writes first. What was sent stays sent when the transaction rolls back.
func sendInside(ctx context.Context, s *shop, order int) error {
	return millrace.InTx(ctx, s.orders, func(ctx context.Context, tx *millrace.Tx) error {
		if err := insert(ctx, tx, order); err != nil {
			return err
		}
		if err := s.broker.Publish(topic, message.NewMessage(id(order), nil)); err != nil {
			return err
		}
		return change(order)
	})
}

// sendAfter sends nothing that was rolled back. What is to be sent exists in memory only.
func sendAfter(ctx context.Context, s *shop, order int) error {
	return millrace.InTx(ctx, s.orders, func(ctx context.Context, tx *millrace.Tx) error {
		if err := insert(ctx, tx, order); err != nil {
			return err
		}
		err := millrace.AfterCommit(ctx, func(context.Context) error {
			crash(order, crashAfterCommit)
			return s.broker.Publish(topic, message.NewMessage(id(order), nil))
		})
		if err != nil {
			return err
		}
		return change(order)
	})
}

// viaOutbox writes the message into the transaction. The forwarder sends it, as often as it takes.
func viaOutbox(ctx context.Context, s *shop, order int) error {
	return millrace.InTx(ctx, s.orders, func(ctx context.Context, tx *millrace.Tx) error {
		if err := insert(ctx, tx, order); err != nil {
			return err
		}
		if err := s.outbox.Publish(ctx, topic, message.NewMessage(id(order), nil)); err != nil {
			return err
		}
		return change(order)
	})
}

// viaHalfMessage has the orders in one database and the messages in another. A witness among the orders says
// whether a message may go.
func viaHalfMessage(ctx context.Context, s *shop, order int) error {
	defer crashAt("half.after_local", order, crashAfterCommit)()
	msg := message.NewMessage(id(order), nil)
	return half.InTx(ctx, s.halves, s.orders, topic, msg, func(ctx context.Context, tx *millrace.Tx) error {
		if err := insert(ctx, tx, order); err != nil {
			return err
		}
		return change(order)
	})
}

func insert(ctx context.Context, tx *millrace.Tx, order int) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO orders (id) VALUES (?)`, id(order))
	return err
}

// change is where an order that is taken back ends, or a process before its COMMIT.
func change(order int) error {
	crash(order, crashBeforeCommit)
	if faultOf(order) == takenBack {
		return errTakenBack
	}
	return nil
}
