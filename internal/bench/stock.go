package main

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	wmsql "github.com/ThreeDotsLabs/watermill-sql/v4/pkg/sql"
	wmforwarder "github.com/ThreeDotsLabs/watermill/components/forwarder"
	"github.com/ThreeDotsLabs/watermill/message"
	"golang.org/x/sync/errgroup"

	"github.com/millrace-go/millrace/internal/testenv/servers"
)

// stockTopic is the topic of Watermill's forwarder inside the database.
const stockTopic = "events"

func stockSchema(k servers.Kind, tuned bool) (wmsql.SchemaAdapter, wmsql.OffsetsAdapter) {
	batch := 0 // the default, 100
	if tuned {
		batch = 1000
	}
	if k == servers.MariaDB {
		return wmsql.DefaultMySQLSchema{SubscribeBatchSize: batch}, wmsql.DefaultMySQLOffsetsAdapter{}
	}
	return wmsql.DefaultPostgreSQLSchema{SubscribeBatchSize: batch}, wmsql.DefaultPostgreSQLOffsetsAdapter{}
}

// stockWriter is Watermill's way to write into the outbox, on a database or a transaction.
func stockWriter(k servers.Kind, on wmsql.ContextExecutor, initialize bool) (message.Publisher, error) {
	schema, _ := stockSchema(k, false)
	pub, err := wmsql.NewPublisher(on, wmsql.PublisherConfig{SchemaAdapter: schema, AutoInitializeSchema: initialize}, watermill.NopLogger{})
	if err != nil {
		return nil, err
	}
	return wmforwarder.NewPublisher(pub, wmforwarder.PublisherConfig{ForwarderTopic: stockTopic}), nil
}

// fillStock writes each message in a transaction of its own, as its order by transaction wants it.
func fillStock(ctx context.Context, d database, topic string, n int) error {
	db, err := openSQL(d)
	if err != nil {
		return err
	}
	defer db.Close()
	if err := stockInit(ctx, d.Kind, wmsql.BeginnerFromStdSQL(db)); err != nil {
		return err
	}
	pub, err := stockWriter(d.Kind, wmsql.BeginnerFromStdSQL(db), false)
	if err != nil {
		return err
	}
	const writers = 8
	db.SetMaxIdleConns(writers)
	var next atomic.Int64
	var g errgroup.Group
	for range writers {
		g.Go(func() error {
			for {
				seq := int(next.Add(1)) - 1
				if seq >= n {
					return nil
				}
				if err := pub.Publish(topic, newMessage(seq, 0)); err != nil {
					return err
				}
			}
		})
	}
	return g.Wait()
}

// stockInit makes the tables, as the first subscriber would.
func stockInit(ctx context.Context, k servers.Kind, db wmsql.Beginner) error {
	sub, err := stockReader(k, db, false)
	if err != nil {
		return err
	}
	return errors.Join(sub.SubscribeInitialize(stockTopic), sub.Close())
}

func stockReader(k servers.Kind, db wmsql.Beginner, tuned bool) (*wmsql.Subscriber, error) {
	schema, offsets := stockSchema(k, tuned)
	c := wmsql.SubscriberConfig{SchemaAdapter: schema, OffsetsAdapter: offsets, InitializeSchema: true}
	if tuned {
		c.PollInterval = 10 * time.Millisecond
	}
	return wmsql.NewSubscriber(db, c, watermill.NopLogger{})
}

// counted counts what got through a publisher.
type counted struct {
	message.Publisher
	n atomic.Int64
}

func (c *counted) Publish(topic string, msgs ...*message.Message) error {
	err := c.Publisher.Publish(topic, msgs...)
	if err == nil {
		c.n.Add(int64(len(msgs)))
	}
	return err
}

// stockForwarder is Watermill's forwarder between its SQL subscriber and its publisher.
type stockForwarder struct {
	*wmforwarder.Forwarder
	out   *counted
	close func()
}

func openStock(p params) (*stockForwarder, error) {
	db, err := openSQL(p.DB)
	if err != nil {
		return nil, err
	}
	sub, err := stockReader(p.DB.Kind, wmsql.BeginnerFromStdSQL(db), p.Tuned)
	if err != nil {
		return nil, err
	}
	pub, err := p.Broker.stock(p.Tuned)
	if err != nil {
		return nil, err
	}
	out := &counted{Publisher: pub}
	fwd, err := wmforwarder.NewForwarder(sub, out, watermill.NopLogger{}, wmforwarder.Config{ForwarderTopic: stockTopic})
	return &stockForwarder{Forwarder: fwd, out: out, close: func() { _ = db.Close() }}, err
}

// drainStock forwards what is in the outbox with Watermill's parts alone.
func drainStock(ctx context.Context, p params, begin func()) (Sample, error) {
	fwd, err := openStock(p)
	if err != nil {
		return Sample{}, err
	}
	defer fwd.close()
	run, stop := context.WithCancel(ctx)
	defer stop()
	begin()
	go func() { _ = fwd.Run(run) }()
	return drained(ctx, p, func() int { return int(fwd.out.n.Load()) })
}
