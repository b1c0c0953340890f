package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	wmsql "github.com/ThreeDotsLabs/watermill-sql/v4/pkg/sql"
	stock "github.com/ThreeDotsLabs/watermill/components/forwarder"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/forwarder"
	"github.com/millrace-go/millrace/outbox"
	"github.com/millrace-go/millrace/outbox/takeover"
)

const (
	forwarderTopic = "takeover_example"
	consumerGroup  = "forwarder"
)

// run is the way there and back. Broker returns the publisher that a forwarder sends with.
func run(ctx context.Context, db *sql.DB, broker func(who string) message.Publisher) error {
	s := &service{sql: db, db: millrace.SQL(db)}
	var err error
	if s.box, err = outbox.New(s.db, outbox.Config{}); err != nil {
		return err
	}
	if err := s.box.Migrate(ctx); err != nil {
		return err
	}

	// 0. As it was: Watermill's publisher and forwarder.
	stopOld, err := start(ctx, s.oldForwarder(broker("watermill")))
	if err != nil {
		return err
	}
	if err := s.publish(ctx, s.oldWay, "order-1", "order-2"); err != nil {
		return errors.Join(err, stopOld())
	}
	s.awaitOldForwarder(ctx)

	// 1. The old forwarder is stopped. What is published the old way waits.
	if err := errors.Join(stopOld(), s.publish(ctx, s.oldWay, "order-3")); err != nil {
		return err
	}

	// 2. The new forwarder and the takeover are started: they bring what waits, and what is still published the old way.
	stopNew, err := start(ctx, s.newForwarder(broker("millrace")))
	if err != nil {
		return err
	}
	err = s.publish(ctx, s.oldWay, "order-4")

	// 3. The services are deployed that publish the new way. When nobody publishes the old way any more, the takeover
	// can be left out of the next deployment.
	err = errors.Join(err, s.publish(ctx, s.newWay, "order-5"))
	s.awaitEmpty(ctx)
	if err := errors.Join(err, stopNew()); err != nil {
		return err
	}

	// And back: the new forwarder is stopped, what waits is given back, and the old one goes on.
	if err := s.publish(ctx, s.newWay, "order-6"); err != nil {
		return err
	}
	t, err := s.takeover()
	if err != nil {
		return err
	}
	n, err := t.GiveBack(ctx)
	if err != nil {
		return err
	}
	fmt.Printf("given back: %d\n", n)
	stopOld, err = start(ctx, s.oldForwarder(broker("watermill")))
	if err != nil {
		return err
	}
	err = s.publish(ctx, s.oldWay, "order-7")
	s.awaitOldForwarder(ctx)
	return errors.Join(err, stopOld())
}

// service is what both ways have in common: one database.
type service struct {
	sql *sql.DB
	db  *millrace.SQLDB
	box *outbox.Box
}

// publish places orders, each in a transaction.
func (s *service) publish(ctx context.Context, way func(ctx context.Context, msg *message.Message) error, orders ...string) error {
	for _, order := range orders {
		if err := way(ctx, message.NewMessage(watermill.NewUUID(), []byte(order))); err != nil {
			return err
		}
	}
	return nil
}

// oldWay publishes through Watermill's outbox.
func (s *service) oldWay(ctx context.Context, msg *message.Message) error {
	tx, err := s.sql.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	pub, err := wmsql.NewPublisher(wmsql.TxFromStdSQL(tx), wmsql.PublisherConfig{SchemaAdapter: wmsql.DefaultPostgreSQLSchema{}}, watermill.NopLogger{})
	if err != nil {
		return err
	}
	if err := stock.NewPublisher(pub, stock.PublisherConfig{ForwarderTopic: forwarderTopic}).Publish("orders", msg); err != nil {
		return err
	}
	return tx.Commit()
}

// newWay publishes through millrace's.
func (s *service) newWay(ctx context.Context, msg *message.Message) error {
	return millrace.InTx(ctx, s.db, func(ctx context.Context, _ *millrace.Tx) error {
		return s.box.Publish(ctx, "orders", msg)
	})
}

// oldForwarder runs Watermill's forwarder.
func (s *service) oldForwarder(pub message.Publisher) func(ctx context.Context, ready func()) error {
	return func(ctx context.Context, ready func()) error {
		sub, err := wmsql.NewSubscriber(wmsql.BeginnerFromStdSQL(s.sql), wmsql.SubscriberConfig{
			ConsumerGroup: consumerGroup, PollInterval: 100 * time.Millisecond, InitializeSchema: true,
			SchemaAdapter: wmsql.DefaultPostgreSQLSchema{}, OffsetsAdapter: wmsql.DefaultPostgreSQLOffsetsAdapter{},
		}, watermill.NopLogger{})
		if err != nil {
			return err
		}
		if err := sub.SubscribeInitialize(forwarderTopic); err != nil {
			return err
		}
		fwd, err := stock.NewForwarder(sub, pub, watermill.NopLogger{}, stock.Config{ForwarderTopic: forwarderTopic})
		if err != nil {
			return err
		}
		go func() { <-fwd.Running(); ready() }()
		return fwd.Run(ctx)
	}
}

// takeover finds the old forwarder's messages.
func (s *service) takeover() (*takeover.Takeover, error) {
	return takeover.New(s.db, s.box, takeover.Config{
		ForwarderTopic: forwarderTopic, ConsumerGroup: consumerGroup, StockPollInterval: 100 * time.Millisecond,
		Logger: slog.Default(),
	})
}

// newForwarder runs millrace's forwarder, and the takeover beside it.
func (s *service) newForwarder(pub message.Publisher) func(ctx context.Context, ready func()) error {
	return func(ctx context.Context, ready func()) error {
		fwd, err := forwarder.New(s.box, pub, forwarder.Config{})
		if err != nil {
			return err
		}
		t, err := s.takeover()
		if err != nil {
			return err
		}
		ready()
		ctx, stop := context.WithCancel(ctx)
		defer stop()
		forwarded := make(chan error, 1)
		go func() { defer stop(); forwarded <- fwd.Run(ctx) }()
		err = t.Run(ctx)
		stop()
		return errors.Join(err, <-forwarded)
	}
}

// start runs something until the returned function is called, which returns its error.
func start(ctx context.Context, run func(ctx context.Context, ready func()) error) (stop func() error, err error) {
	ctx, cancel := context.WithCancel(ctx)
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- run(ctx, func() { close(ready) }) }()
	select {
	case <-ready:
		return func() error { cancel(); return <-ended }, nil
	case err := <-ended:
		cancel()
		return nil, err
	}
}

// awaitOldForwarder waits until Watermill's forwarder has stored that it has sent everything: stopped earlier, it would
// send its last batch again.
func (s *service) awaitOldForwarder(ctx context.Context) {
	s.await(ctx, `SELECT count(*) = 0 FROM "watermill_`+forwarderTopic+`" m, "watermill_offsets_`+forwarderTopic+`" o
		WHERE (m.transaction_id, m."offset") > (o.last_processed_transaction_id, o.offset_acked)`)
}

// awaitEmpty waits until nothing is left to move or to send.
func (s *service) awaitEmpty(ctx context.Context) {
	s.awaitOldForwarder(ctx)
	s.await(ctx, `SELECT count(*) = 0 FROM millrace_outbox`)
}

func (s *service) await(ctx context.Context, query string) {
	for done := false; !done && ctx.Err() == nil; time.Sleep(20 * time.Millisecond) {
		if err := s.sql.QueryRowContext(ctx, query).Scan(&done); err != nil {
			return // the next step reports it
		}
	}
}
