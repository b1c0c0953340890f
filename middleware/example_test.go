package middleware_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/dedup"
	"github.com/millrace-go/millrace/middleware"
)

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func ExampleRecommended() {
	ch := gochannel.NewGoChannel(gochannel.Config{}, watermill.NopLogger{})
	router, err := message.NewRouter(message.RouterConfig{}, watermill.NopLogger{})
	check(err)

	chain, err := middleware.Recommended(middleware.Config{
		Dedup:  new(dedup.Memory), // in a service: redisdedup.New(rdb, redisdedup.Config{Namespace: "billing"})
		Poison: middleware.PoisonConfig{Publisher: ch, Topic: "orders.dead"},
	})
	check(err)
	router.AddMiddleware(chain...)

	done := make(chan struct{})
	router.AddConsumerHandler("billing", "orders", ch, func(msg *message.Message) error {
		fmt.Println("billed", string(msg.Payload))
		close(done)
		return nil
	})

	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- router.Run(ctx) }()
	<-router.Running()
	for range 3 { // a broker may deliver more than once
		check(ch.Publish("orders", message.NewMessage("id-1", []byte("order 1"))))
	}
	<-done
	cancel()
	check(<-ended)
	check(ch.Close())
	// Output: billed order 1
}

func ExampleIdempotent() {
	idempotent, err := middleware.Idempotent(new(dedup.Memory), middleware.IdempotentConfig{
		Consumer: "billing", // not needed in a router, whose handlers have names
		OnEvent:  func(e middleware.Event, _ *message.Message) { fmt.Println(e) },
	})
	check(err)
	handle := idempotent(func(msg *message.Message) ([]*message.Message, error) {
		claim, _ := middleware.Fence(msg.Context())
		fmt.Println("charge the card, fence", claim.Fence)
		return nil, nil
	})
	for range 2 {
		_, err = handle(message.NewMessage("id-1", []byte("order 1")))
		check(err)
	}
	// Output:
	// charge the card, fence 1
	// handled
	// duplicate
}

func ExampleRetry() {
	retry, err := middleware.Retry(middleware.RetryConfig{MaxAttempts: 3, InitialDelay: time.Millisecond})
	check(err)
	handle := retry(func(msg *message.Message) ([]*message.Message, error) {
		fmt.Println("attempt", middleware.Attempt(msg.Context()))
		return nil, errors.New("the bank does not answer")
	})
	_, err = handle(message.NewMessage("id-1", nil))
	fmt.Println(err)
	// Output:
	// attempt 1
	// attempt 2
	// attempt 3
	// the bank does not answer
}

func ExamplePermanent() {
	retry, err := middleware.Retry(middleware.RetryConfig{})
	check(err)
	handle := retry(func(*message.Message) ([]*message.Message, error) {
		fmt.Println("called")
		return nil, middleware.Permanent(errors.New("no such customer"))
	})
	_, err = handle(message.NewMessage("id-1", nil))
	fmt.Println(err)
	// Output:
	// called
	// no such customer
}

func ExampleTimeout() {
	timeout, err := middleware.Timeout(time.Millisecond)
	check(err)
	handle := timeout(func(msg *message.Message) ([]*message.Message, error) {
		<-msg.Context().Done() // hand the context on to whatever may take long
		return nil, msg.Context().Err()
	})
	_, err = handle(message.NewMessage("id-1", nil))
	fmt.Println(errors.Is(err, middleware.ErrTimeout))
	// Output: true
}

func ExampleRecoverer() {
	handle := middleware.Recoverer(func(*message.Message) ([]*message.Message, error) {
		panic("index out of range")
	})
	_, err := handle(message.NewMessage("id-1", nil))
	fmt.Println(err)
	// Output: panic: index out of range
}

func ExamplePoisonQueue() {
	dead := &memoryPublisher{}
	poison, err := middleware.PoisonQueue(middleware.PoisonConfig{Publisher: dead, Topic: "orders.dead"})
	check(err)
	handle := poison(func(*message.Message) ([]*message.Message, error) {
		return nil, middleware.WithReason(errors.New("no such customer"), "unknown_customer")
	})
	_, err = handle(message.NewMessage("id-1", []byte("order 1")))
	fmt.Println("acknowledged:", err == nil)
	for _, msg := range dead.on("orders.dead") {
		fmt.Println(msg.UUID, string(msg.Payload), msg.Metadata[middleware.MetaReason])
	}
	// Output:
	// acknowledged: true
	// id-1 order 1 unknown_customer
}

func ExampleTransactional() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "millrace")
	check(err)
	defer os.RemoveAll(dir)
	sqlDB, err := sql.Open("sqlite", "file:"+filepath.Join(dir, "shop.db")+"?_pragma=journal_mode(wal)")
	check(err)
	defer sqlDB.Close()

	db := millrace.SQL(sqlDB)
	check(millrace.Migrate(ctx, db, dedup.Migrations()))
	_, err = sqlDB.Exec(`CREATE TABLE invoices (order_id TEXT)`)
	check(err)
	inbox, err := dedup.NewInbox(db, dedup.InboxConfig{})
	check(err)
	transactional, err := middleware.Transactional(db, inbox, middleware.TransactionalConfig{Consumer: "billing"})
	check(err)

	handle := transactional(func(msg *message.Message) ([]*message.Message, error) {
		return nil, millrace.InTx(msg.Context(), db, func(ctx context.Context, tx *millrace.Tx) error {
			_, err := tx.ExecContext(ctx, `INSERT INTO invoices VALUES (?)`, string(msg.Payload))
			return err
		})
	})
	for range 3 {
		_, err = handle(message.NewMessage("id-1", []byte("order 1")))
		check(err)
	}
	var n int
	check(sqlDB.QueryRow(`SELECT count(*) FROM invoices`).Scan(&n))
	fmt.Println(n, "invoice")
	// Output: 1 invoice
}
