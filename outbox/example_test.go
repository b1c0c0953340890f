package outbox_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/outbox"
)

// shop is an outbox in a file that is deleted by the returned function.
func shop(cfg outbox.Config) (db millrace.TxDB[*millrace.Tx], box *outbox.Box, end func()) {
	dir, err := os.MkdirTemp("", "outbox")
	must(err)
	raw, err := sql.Open("sqlite", "file:"+filepath.Join(dir, "shop.db")+"?_pragma=journal_mode(wal)&_pragma=busy_timeout(5000)")
	must(err)
	db = millrace.SQL(raw)
	box, err = outbox.New(db, cfg)
	must(err)
	must(box.Migrate(context.Background()))
	return db, box, func() { _, _ = raw.Close(), os.RemoveAll(dir) }
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func ExampleWithDelay() {
	db, box, end := shop(outbox.Config{})
	defer end()
	ctx := context.Background()

	// The order is placed; in 30 minutes somebody looks whether it was paid.
	must(millrace.InTx(ctx, db, func(ctx context.Context, tx *millrace.Tx) error {
		remind := message.NewMessage("reminder-7", []byte(`{"order":7}`))
		return box.Publish(ctx, "orders.unpaid", outbox.WithSchedule(outbox.WithDelay(remind, 30*time.Minute), "order 7 unpaid"))
	}))

	// It is paid: the reminder is cancelled, together with what else the transaction does.
	must(millrace.InTx(ctx, db, func(ctx context.Context, tx *millrace.Tx) error {
		err := box.Cancel(ctx, "order 7 unpaid")
		if errors.Is(err, outbox.ErrTooLate) || errors.Is(err, outbox.ErrNoSchedule) {
			fmt.Println("the reminder has gone out")
			return nil
		}
		return err
	}))

	page, err := box.List(ctx, outbox.Query{Filter: outbox.Filter{State: outbox.StateWaiting}})
	must(err)
	fmt.Println(len(page.Records), "messages wait")
	// Output: 0 messages wait
}

func ExampleBox_Replace() {
	db, box, end := shop(outbox.Config{})
	defer end()
	ctx := context.Background()

	// Each change of the cart sets the clock back to an hour.
	touch := func(id string) error {
		return millrace.InTx(ctx, db, func(ctx context.Context, tx *millrace.Tx) error {
			abandoned := outbox.WithDelay(message.NewMessage(id, nil), time.Hour)
			err := box.Replace(ctx, "cart 3", "carts.abandoned", abandoned)
			if errors.Is(err, outbox.ErrNoSchedule) || errors.Is(err, outbox.ErrTooLate) {
				return box.Publish(ctx, "carts.abandoned", outbox.WithSchedule(abandoned, "cart 3"))
			}
			return err
		})
	}
	must(touch("first"))
	must(touch("second"))
	must(touch("third"))

	page, err := box.List(ctx, outbox.Query{Filter: outbox.Filter{State: outbox.StateWaiting}})
	must(err)
	for _, r := range page.Records {
		fmt.Println(r.ID, r.Schedule)
	}
	// Output: third cart 3
}

func ExamplePolicy() {
	_, err := outbox.New(millrace.SQL(new(sql.DB)), outbox.Config{Policies: []outbox.Policy{
		{Topics: []string{"refunds.*"}, After: outbox.AwaitConfirmation, Groups: []string{"payments"}, Deadline: 5 * time.Minute},
		{Topics: []string{"invoices", "orders.*"}, After: outbox.Keep, Retention: 30 * 24 * time.Hour},
	}}) // all other topics are deleted when the broker has them
	fmt.Println(err)
	// Output: <nil>
}

func ExampleBox_Replay() {
	_, box, end := shop(outbox.Config{})
	defer end()
	ctx := context.Background()

	by := outbox.By{Who: "ann@example.com", Why: "the exchange was missing, ticket 4711"}
	dead := outbox.Filter{Topic: "orders.placed", Reason: "no_route"}

	look, err := box.Replay(ctx, by, dead, outbox.Bulk{DryRun: true})
	must(err)
	fmt.Println(look.Matched, "would be sent again")

	report, err := box.Replay(ctx, by, dead, outbox.Bulk{PerSecond: 50})
	must(err)
	fmt.Println(report.Done, "put back, audit", report.Audit)
	// Output:
	// 0 would be sent again
	// 0 put back, audit 1
}

func ExampleContextValue() {
	type tenant struct{}
	db, box, end := shop(outbox.Config{Propagators: []outbox.Propagator{
		outbox.ContextValue("tenant", func(ctx context.Context) string { name, _ := ctx.Value(tenant{}).(string); return name }),
	}})
	defer end()

	ctx := context.WithValue(context.Background(), tenant{}, "acme")
	must(millrace.InTx(ctx, db, func(ctx context.Context, tx *millrace.Tx) error {
		return box.Publish(ctx, "orders.placed", message.NewMessage("1", nil))
	}))
	trace, err := box.Find(ctx, "1")
	must(err)
	fmt.Println(trace.Records[0].State, trace.Records[0].Metadata["tenant"])
	// Output: waiting acme
}
