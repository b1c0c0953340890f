package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-go/millrace/forwarder"
	"github.com/millrace-go/millrace/outbox"
)

// fromAside puts messages back that were put aside.
const fromAside = `INSERT INTO millrace_outbox (id, lane, topic, order_key, size, metadata, payload)
	SELECT id, lane, topic, order_key, size, metadata, payload FROM aside ORDER BY pos`

// drainReplicas is a drain by several forwarders, each with connections of its own, in one process. The messages
// become visible when each of them holds its share of the lanes.
func drainReplicas(ctx context.Context, p params, begin func()) (s Sample, err error) {
	conn, err := pgx.Connect(ctx, p.DB.URL)
	if err != nil {
		return Sample{}, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if _, err := conn.Exec(ctx, `CREATE TABLE aside AS TABLE millrace_outbox; TRUNCATE millrace_outbox`); err != nil {
		return Sample{}, err
	}
	run, stop := context.WithCancel(ctx)
	n := p.Options[replicas.name]
	var all []*forwarder.Forwarder
	ended := make(chan error, n)
	defer func() {
		stop()
		for range all {
			err = errors.Join(err, <-ended)
		}
	}()
	for range n {
		fwd, done, err := openReplica(ctx, p)
		if err != nil {
			return Sample{}, err
		}
		all = append(all, fwd)
		go func() {
			err := fwd.Run(run)
			ended <- errors.Join(err, done())
		}()
	}
	if err := shared(ctx, all); err != nil {
		return Sample{}, err
	}
	tx, err := conn.Begin(ctx)
	if err != nil {
		return Sample{}, err
	}
	defer tx.Rollback(context.WithoutCancel(ctx)) //nolint:errcheck // of what was committed there is nothing to roll back
	if _, err := tx.Exec(ctx, fromAside); err != nil {
		return Sample{}, err
	}
	begin()
	if err := tx.Commit(ctx); err != nil {
		return Sample{}, err
	}
	return drained(ctx, p, func() int {
		sum := 0
		for _, fwd := range all {
			sum += int(fwd.Stats().Settled)
		}
		return sum
	})
}

// openReplica is a forwarder that looks often, so that the first look is not what is measured.
func openReplica(ctx context.Context, p params) (*forwarder.Forwarder, func() error, error) {
	o, err := openOutbox(ctx, p.DB, nil)
	if err != nil {
		return nil, nil, err
	}
	pub, err := p.Broker.ours(warnings())
	if err != nil {
		o.close()
		return nil, nil, err
	}
	done := func() error { defer o.close(); return pub.Close() }
	fwd, err := forwarder.New(o.box, pub, forwarder.Config{
		Logger: warnings(), PollInterval: 5 * time.Millisecond, MaxPollInterval: 5 * time.Millisecond, Lease: 2 * time.Second,
	})
	if err != nil {
		return nil, nil, errors.Join(err, done())
	}
	return fwd, done, nil
}

// shared waits until each forwarder has its share.
func shared(ctx context.Context, all []*forwarder.Forwarder) error {
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(5 * time.Millisecond) {
		fair := 0
		for _, fwd := range all {
			if fwd.Stats().Lanes == outbox.Lanes/len(all) {
				fair++
			}
		}
		switch {
		case fair == len(all):
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case time.Now().After(deadline):
			return fmt.Errorf("%d of %d forwarders have their share of the lanes", fair, len(all))
		}
	}
}
