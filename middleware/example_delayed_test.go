package middleware_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"

	"github.com/millrace-go/millrace/dedup"
	"github.com/millrace-go/millrace/delayed"
	"github.com/millrace-go/millrace/middleware"
	"github.com/millrace-go/millrace/store"
)

func ExampleDelayedRetry() {
	ch := gochannel.NewGoChannel(gochannel.Config{}, watermill.NopLogger{})
	router, err := message.NewRouter(message.RouterConfig{}, watermill.NopLogger{})
	check(err)

	st := new(store.Memory) // in a service: sqlstore.New(db)
	chain, err := middleware.Recommended(middleware.Config{
		Dedup:   new(dedup.Memory),
		Retry:   middleware.RetryConfig{MaxAttempts: 2, InitialDelay: time.Millisecond},
		Delayed: middleware.DelayedConfig{Store: st, MaxAttempts: 6, Delays: []time.Duration{10 * time.Millisecond, time.Minute}},
		Poison:  middleware.PoisonConfig{Store: st},
	})
	check(err)
	router.AddMiddleware(chain...)

	sub, err := delayed.Subscriber(ch, st, delayed.Config{Handler: "billing"}) // brings stored messages back
	check(err)
	done := make(chan struct{})
	router.AddConsumerHandler("billing", "orders", sub, func(msg *message.Message) error {
		n := middleware.Attempt(msg.Context())
		fmt.Println("attempt", n)
		if n < 3 {
			return errors.New("the bank does not answer")
		}
		close(done)
		return nil
	})

	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- router.Run(ctx) }()
	<-router.Running()
	check(ch.Publish("orders", message.NewMessage("id-1", []byte("order 1"))))
	<-done
	cancel()
	check(<-ended)
	// Output:
	// attempt 1
	// attempt 2
	// attempt 3
}

func ExamplePoisonQueue_store() {
	ctx := context.Background()
	dead := new(store.Memory) // in a service: sqlstore.New(db)
	poison, err := middleware.PoisonQueue(middleware.PoisonConfig{
		Store: dead,
		Group: "billing", // not needed in a router, whose handlers have names
	})
	check(err)
	handle := poison(func(*message.Message) ([]*message.Message, error) {
		return nil, middleware.WithReason(errors.New("no such customer"), "unknown_customer")
	})
	_, err = handle(message.NewMessage("id-1", []byte("order 1")))
	fmt.Println("acknowledged:", err == nil)

	letters, err := dead.List(ctx, store.Filter{Group: "billing", Reason: "unknown_customer"}, 0, 100)
	check(err)
	for _, l := range letters {
		fmt.Println(l.MessageID, l.Reason, l.Error)
	}
	report, err := store.Replay(ctx, dead, store.Order{
		Filter: store.Filter{Group: "billing", Reason: "unknown_customer"},
		Who:    "ann", Why: "the customer was created",
	})
	check(err)
	fmt.Println("replayed", report.Done)
	// Output:
	// acknowledged: true
	// id-1 unknown_customer no such customer
	// replayed 1
}

func ExampleNotYet() {
	handle := func(msg *message.Message) error {
		switch msg.Metadata.Get("type") {
		case "order_placed":
			return nil
		default: // a newer version, which is being deployed, knows it
			return middleware.NotYet(errors.New("unknown type"), time.Minute)
		}
	}
	err := handle(message.NewMessage("id-1", nil))
	fmt.Println(err, middleware.Delay(err))
	// Output: unknown type 1m0s
}

func ExampleClassify() {
	errLocked := errors.New("account is locked")
	classify, err := middleware.Classify(
		middleware.Rule{Match: middleware.Is(errLocked), After: time.Hour, Reason: "locked"},
		middleware.Rule{Match: middleware.As[*middleware.PanicError](), Permanent: true},
	)
	check(err)
	handle := classify(func(*message.Message) ([]*message.Message, error) {
		return nil, fmt.Errorf("charge: %w", errLocked)
	})
	_, err = handle(message.NewMessage("id-1", nil))
	fmt.Println(middleware.Delay(err), middleware.Reason(err))
	// Output: 1h0m0s locked
}
