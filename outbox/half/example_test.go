package half_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/outbox"
	"github.com/millrace-go/millrace/outbox/half"
)

// The orders are in a database of their own. A witness there tells what became of the transaction, so
// that nobody has to write a checker.
func ExampleInTx() {
	var ctx context.Context
	var messagesPool, ordersPool *sql.DB

	messages, orders := millrace.SQL(messagesPool), millrace.SQL(ordersPool)
	box, err := outbox.New(messages, outbox.Config{})
	if err != nil {
		panic(err)
	}
	halves, err := half.New(messages, box, half.Config{Witnesses: map[string]millrace.DB{"orders": orders}})
	if err != nil {
		panic(err)
	}
	go func() { _ = halves.Run(ctx) }()

	msg := message.NewMessage(watermill.NewUUID(), []byte(`{"order": 17}`))
	err = half.InTx(ctx, halves, orders, "orders.placed", msg, func(ctx context.Context, tx *millrace.Tx) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO orders (id) VALUES ($1)`, 17)
		return err
	})
	fmt.Println(err)
}

// The data is behind an API: a checker says later what became of it.
func ExampleMessages_Do() {
	var (
		ctx      context.Context
		messages *millrace.SQLDB
		box      *outbox.Box
		transfer func(ctx context.Context, id string) error
		find     func(ctx context.Context, id string) (state string, err error)
	)
	halves, err := half.New(messages, box, half.Config{
		Checkers: map[string]half.Checker{
			"transfers.done": func(ctx context.Context, m half.Info) (half.Verdict, error) {
				switch state, err := find(ctx, m.ID); {
				case err != nil:
					return half.Unknown, err
				case state == "booked":
					return half.WasCommitted, nil
				case state == "refused": // for good; "not found" would not be enough
					return half.WasRolledBack, nil
				}
				return half.Unknown, nil
			},
		},
	})
	if err != nil {
		panic(err)
	}
	msg := message.NewMessage(watermill.NewUUID(), nil)
	err = halves.Do(ctx, "transfers.done", msg, func(ctx context.Context) error {
		err := transfer(ctx, msg.UUID)
		if errors.Is(err, errRefused) {
			return half.NothingDone(err) // dropped at once
		}
		return err
	})
	fmt.Println(err)
}

var errRefused = errors.New("refused")
