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

// InTx does not wait for an asynchronous listener; Close does.
func ExampleListenerAsync() {
	sqlDB, db := shop()
	defer sqlDB.Close()

	poured := make(chan struct{})
	bus := millrace.NewBus(millrace.BusConfig{})
	millrace.On(bus, millrace.PhaseAfterCommit, func(_ context.Context, e TeaSold) error {
		<-poured
		fmt.Println("newsletter sent")
		return nil
	}, millrace.ListenerAsync())

	err := millrace.InTx(context.Background(), db, func(ctx context.Context, tx *millrace.Tx) error {
		return bus.Emit(ctx, TeaSold{1})
	})
	fmt.Println("committed", err)
	close(poured)
	fmt.Println(db.Close(context.Background()))
	// Output:
	// committed <nil>
	// newsletter sent
	// <nil>
}

func ExampleListenerOrder() {
	sqlDB, db := shop()
	defer sqlDB.Close()

	bus := millrace.NewBus(millrace.BusConfig{})
	say := func(what string) func(context.Context, TeaSold) error {
		return func(context.Context, TeaSold) error {
			fmt.Println(what)
			return nil
		}
	}
	millrace.On(bus, millrace.PhaseAfterCommit, say("second"))
	millrace.On(bus, millrace.PhaseAfterCommit, say("first"), millrace.ListenerOrder(-1))
	_ = millrace.InTx(context.Background(), db, func(ctx context.Context, tx *millrace.Tx) error {
		return bus.Emit(ctx, TeaSold{1})
	})
	// Output:
	// first
	// second
}

// One listener for every outcome.
func ExampleOutcomeOf() {
	sqlDB, db := shop()
	defer sqlDB.Close()

	bus := millrace.NewBus(millrace.BusConfig{})
	millrace.On(bus, millrace.PhaseAfterCompletion, func(ctx context.Context, e TeaSold) error {
		switch outcome, _ := millrace.OutcomeOf(ctx); outcome {
		case millrace.Committed:
			fmt.Println("sold", e.Cups)
		case millrace.RolledBack:
			fmt.Println("not sold", e.Cups)
		case millrace.Unknown:
			fmt.Println("look before you pour", e.Cups)
		}
		return nil
	})
	for cups, result := range []error{nil, errors.New("the kettle is broken")} {
		_ = millrace.InTx(context.Background(), db, func(ctx context.Context, tx *millrace.Tx) error {
			return errors.Join(bus.Emit(ctx, TeaSold{cups}), result)
		})
	}
	// Output:
	// sold 0
	// not sold 1
}

// An event that was emitted in a part which is rolled back has happened to nobody, whatever becomes of the rest.
func ExampleBus_Emit_nested() {
	sqlDB, db := shop()
	defer sqlDB.Close()

	bus := millrace.NewBus(millrace.BusConfig{})
	millrace.On(bus, millrace.PhaseAfterCommit, func(_ context.Context, e TeaSold) error {
		fmt.Println("sold", e.Cups)
		return nil
	})
	millrace.On(bus, millrace.PhaseAfterRollback, func(_ context.Context, e TeaSold) error {
		fmt.Println("not sold", e.Cups)
		return nil
	})
	err := millrace.InTx(context.Background(), db, func(ctx context.Context, tx *millrace.Tx) error {
		_ = millrace.InTx(ctx, db, func(ctx context.Context, tx *millrace.Tx) error {
			return errors.Join(bus.Emit(ctx, TeaSold{9}), errors.New("too many"))
		}, millrace.Nested())
		return bus.Emit(ctx, TeaSold{1})
	})
	fmt.Println(err)
	// Output:
	// not sold 9
	// sold 1
	// <nil>
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
