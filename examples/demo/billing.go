package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/dedup/redisdedup"
	"github.com/millrace-go/millrace/middleware"
)

// runBilling is one of the processes of the billing service. Whichever of them gets a message handles it,
// and middleware.Idempotent sees to it that each is handled once.
func runBilling(ctx context.Context, cfg config, log *slog.Logger) error {
	db, err := openDatabase(cfg, "billing")
	if err != nil {
		return err
	}
	defer db.Close()
	rdb, err := openRedis(cfg.Dedup)
	if err != nil {
		return err
	}
	defer rdb.Close()
	sub, err := newSubscriber(cfg, "billing", log)
	if err != nil {
		return err
	}
	defer sub.Close()

	b := &billing{db: millrace.SQL(db), name: cfg.Name}
	idempotent, err := middleware.Idempotent(
		redisdedup.New(rdb, redisdedup.Config{Namespace: cfg.Run, Logger: log}),
		middleware.IdempotentConfig{Logger: log, OnEvent: b.hear},
	)
	if err != nil {
		return err
	}
	router, err := message.NewRouter(message.RouterConfig{}, watermill.NewSlogLogger(log))
	if err != nil {
		return err
	}
	router.AddMiddleware(idempotent)
	router.AddConsumerHandler("bill", cfg.Topic, sub, b.bill)

	go b.report(ctx, router.Running())
	defer b.tell()
	return millrace.RunRouter(ctx, router)
}

// billing writes bills.
type billing struct {
	db   *millrace.SQLDB
	name string

	billed  atomic.Int64
	dropped atomic.Int64
}

// bill writes the bill of an order. Nothing in the table prevents a second bill for the same order.
func (b *billing) bill(msg *message.Message) error {
	var order OrderPlaced
	if err := json.Unmarshal(msg.Payload, &order); err != nil {
		return err
	}
	err := millrace.InTx(msg.Context(), b.db, func(ctx context.Context, tx *millrace.Tx) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO bills (order_id, amount, billed_by) VALUES ($1, $2, $3)`,
			order.ID, order.Amount, b.name)
		return err
	})
	if err == nil {
		b.billed.Add(1)
	}
	return err
}

// hear counts what Idempotent tells: the handler never sees a duplicate.
func (b *billing) hear(e middleware.Event, _ *message.Message) {
	if e == middleware.EventDuplicate {
		b.dropped.Add(1)
	}
}

// report tells the parent how far we are, for the first time when the subscription stands.
func (b *billing) report(ctx context.Context, running <-chan struct{}) {
	select {
	case <-running:
	case <-ctx.Done():
		return
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		b.tell()
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (b *billing) tell() {
	_ = json.NewEncoder(os.Stdout).Encode(worked{Billed: int(b.billed.Load()), Dropped: int(b.dropped.Load())})
}

// keepBilling runs billing process number i until ctx ends, and signals ready when it has subscribed.
func keepBilling(ctx context.Context, cfg config, i int, p *progress, ready chan<- struct{}, log io.Writer) error {
	cfg.Name = fmt.Sprintf("billing-%d", i+1)
	var once sync.Once
	c, err := startChild("billing", cfg, log, func(line []byte) {
		var report worked
		if json.Unmarshal(line, &report) == nil {
			p.update(func(s *snapshot) { s.Workers[i] = report })
			once.Do(func() { ready <- struct{}{} })
		}
	})
	if err != nil {
		return err
	}
	select {
	case <-c.ended:
		return cmp.Or(c.err, errors.New(cfg.Name+" ended by itself"))
	case <-ctx.Done():
		return c.stop()
	}
}
