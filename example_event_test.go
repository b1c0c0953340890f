package millrace_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"

	"github.com/millrace-go/millrace"
)

type TeaSold struct{ Cups int }

func ExampleOn() {
	sqlDB, db := shop()
	defer sqlDB.Close()

	bus := millrace.NewBus(millrace.BusConfig{})
	millrace.On(bus, millrace.PhaseBeforeCommit, func(_ context.Context, e TeaSold) error {
		if e.Cups > 100 {
			return errors.New("nobody drinks that much") // rolls back
		}
		fmt.Println("before commit:", e.Cups)
		return nil
	})
	millrace.On(bus, millrace.PhaseAfterCommit, func(_ context.Context, e TeaSold) error {
		fmt.Println("after commit:", e.Cups)
		return nil
	})
	millrace.On(bus, millrace.PhaseAfterRollback, func(_ context.Context, e TeaSold) error {
		fmt.Println("after rollback:", e.Cups)
		return nil
	})
	millrace.On(bus, millrace.PhaseAfterCompletion, func(ctx context.Context, e TeaSold) error {
		outcome, _ := millrace.OutcomeOf(ctx)
		fmt.Println("after completion:", e.Cups, outcome)
		return nil
	})

	for _, cups := range []int{1, 1000} {
		err := millrace.InTx(context.Background(), db, func(ctx context.Context, tx *millrace.Tx) error {
			return bus.Emit(ctx, TeaSold{cups})
		})
		fmt.Println(err)
	}
	// Output:
	// before commit: 1
	// after commit: 1
	// after completion: 1 committed
	// <nil>
	// after rollback: 1000
	// after completion: 1000 rolled back
	// nobody drinks that much
}

// Where there is no transaction, Emit does what the bus was configured to do.
func ExampleBus_Emit_withoutTransaction() {
	for _, choice := range []millrace.NoTransaction{millrace.Refuse, millrace.RunNow, millrace.Drop} {
		bus := millrace.NewBus(millrace.BusConfig{NoTransaction: choice})
		millrace.On(bus, millrace.PhaseAfterCommit, func(_ context.Context, e TeaSold) error {
			fmt.Println("heard")
			return nil
		})
		fmt.Println(bus.Emit(context.Background(), TeaSold{1}), bus.Dropped())
	}
	// Output:
	// millrace: no transaction in the context 0
	// heard
	// <nil> 0
	// <nil> 1
}

// A durable listener is a consumer: the event is a message, which survives a crash. In a service the publisher is the
// outbox's, which writes the message with the transaction.
func ExampleDurable() {
	sqlDB, db := shop()
	defer sqlDB.Close()
	pubsub := gochannel.NewGoChannel(gochannel.Config{Persistent: true}, watermill.NopLogger{})
	defer pubsub.Close()

	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	bus := millrace.NewBus(millrace.BusConfig{})
	millrace.On(bus, millrace.PhaseAfterCommit, func(_ context.Context, e TeaSold) error {
		fmt.Println("billed:", e.Cups)
		stop()
		return nil
	}, millrace.Durable(pubsub, "tea.sold"), millrace.ListenerName("billing"))

	err := millrace.InTx(ctx, db, func(ctx context.Context, tx *millrace.Tx) error {
		return bus.Emit(ctx, TeaSold{3})
	})
	fmt.Println(err)

	router, err := message.NewRouter(message.RouterConfig{}, watermill.NopLogger{})
	if err == nil {
		err = bus.AddHandlers(router, func(string) (message.Subscriber, error) { return pubsub, nil })
	}
	if err == nil {
		err = millrace.RunRouter(ctx, router)
	}
	fmt.Println(err)
	// Output:
	// <nil>
	// billed: 3
	// <nil>
}
