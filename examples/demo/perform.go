package main

import (
	"context"
	"errors"
	"io"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/outbox"
)

// patience is how long nothing may move before the run is taken to be over.
const patience = time.Minute

// perform runs the services until everything that was ordered is billed.
func perform(ctx context.Context, cfg config, s *stage, p *progress, log io.Writer) error {
	ctx, curtain := context.WithCancel(ctx)
	defer curtain()
	g, ctx := errgroup.WithContext(ctx)

	// The consumers first: a broker does not keep messages for a group that it has not heard of.
	ready := make(chan struct{}, 2)
	for i := range 2 {
		g.Go(func() error { return keepBilling(ctx, cfg, i, p, ready, log) })
	}
	for range 2 {
		select {
		case <-ready:
		case <-ctx.Done():
			return g.Wait()
		}
	}
	audit, err := openAudit(ctx, cfg, p, log)
	if err != nil {
		curtain()
		return errors.Join(err, g.Wait())
	}
	g.Go(func() error { return audit.run(ctx) })
	g.Go(func() error { return keepForwarding(ctx, cfg, p, log) })
	g.Go(func() error {
		defer curtain()
		return takeOrders(ctx, cfg, s, p)
	})
	return g.Wait()
}

// takeOrders opens the shop, and when it closes waits until the last message was handled.
func takeOrders(ctx context.Context, cfg config, s *stage, p *progress) error {
	db := millrace.SQL(s.shop)
	box, err := outbox.New(db, outbox.Config{})
	if err != nil {
		return err
	}
	shop := &shop{db: db, box: box, topic: cfg.Topic}
	if err := shop.open(ctx, cfg, p); err != nil {
		return err
	}
	return finish(ctx, s, p)
}

// finish waits until the outbox is empty and all that reached the broker was handled. When nothing moves any more it
// gives up, and leaves it to the count to say what is missing.
func finish(ctx context.Context, s *stage, p *progress) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	last, moved, calm := p.snapshot(), time.Now(), 0
	for calm < 5 && time.Since(moved) < patience {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		waiting, err := s.waiting(ctx)
		if err != nil {
			return err
		}
		now := p.snapshot()
		if now != last {
			last, moved = now, time.Now()
		}
		if calm++; waiting > 0 || !now.settled() {
			calm = 0
		}
	}
	return nil
}
