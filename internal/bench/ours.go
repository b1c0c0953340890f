package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	_ "github.com/jackc/pgx/v5/stdlib" // driver "pgx"
	_ "modernc.org/sqlite"             // driver "sqlite"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/forwarder"
	"github.com/millrace-go/millrace/internal/testenv/servers"
	"github.com/millrace-go/millrace/outbox"
	"github.com/millrace-go/millrace/pgxtx"
)

// warnings go to the parent, which shows them when the run fails.
func warnings() *slog.Logger {
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

// openSQL opens a database with database/sql.
func openSQL(d database) (*sql.DB, error) {
	switch d.Kind {
	case servers.Postgres:
		return sql.Open("pgx", d.URL)
	case servers.MariaDB:
		return servers.OpenMySQL(d.URL)
	default:
		return sql.Open("sqlite", d.URL+"?_pragma=journal_mode(wal)&_pragma=busy_timeout(10000)&_pragma=synchronous(full)&_txlock=immediate")
	}
}

// ourOutbox is a millrace outbox: on PostgreSQL through native pgx, else through database/sql.
type ourOutbox struct {
	box     *outbox.Box
	publish func(ctx context.Context, fn func(ctx context.Context) error) error // runs fn in a transaction
	close   func()
}

// openOutbox opens one; on PostgreSQL with a tracer, unless that is nil.
func openOutbox(ctx context.Context, d database, tracer pgx.QueryTracer) (*ourOutbox, error) {
	if d.Kind == servers.Postgres {
		cfg, err := pgxpool.ParseConfig(d.URL)
		if err != nil {
			return nil, err
		}
		cfg.ConnConfig.Tracer = tracer
		pool, err := pgxpool.NewWithConfig(ctx, cfg)
		if err != nil {
			return nil, err
		}
		db := pgxtx.Pool(pool)
		box, err := outbox.New(db, outbox.Config{})
		return &ourOutbox{box: box, close: pool.Close, publish: func(ctx context.Context, fn func(context.Context) error) error {
			return millrace.InTx(ctx, db, func(ctx context.Context, _ pgx.Tx) error { return fn(ctx) })
		}}, err
	}
	raw, err := openSQL(d)
	if err != nil {
		return nil, err
	}
	db := millrace.SQL(raw)
	box, err := outbox.New(db, outbox.Config{})
	return &ourOutbox{box: box, close: func() { _ = raw.Close() }, publish: func(ctx context.Context, fn func(context.Context) error) error {
		return millrace.InTx(ctx, db, func(ctx context.Context, _ *millrace.Tx) error { return fn(ctx) })
	}}, err
}

// fillOurs puts n messages into a fresh outbox.
func fillOurs(ctx context.Context, d database, topic string, n, keys int) error {
	o, err := openOutbox(ctx, d, nil)
	if err != nil {
		return err
	}
	defer o.close()
	if err := o.box.Migrate(ctx); err != nil {
		return err
	}
	const each = 500
	for from := 0; from < n; from += each {
		err := o.publish(ctx, func(ctx context.Context) error {
			for seq := from; seq < min(from+each, n); seq++ {
				if err := o.box.Publish(ctx, topic, newMessage(seq, keys)); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// drainOurs forwards what is in the outbox, until the rows are gone.
func drainOurs(ctx context.Context, p params, begin func()) (Sample, error) {
	var reads readTimes
	var tracer pgx.QueryTracer
	if p.Options[timeReads] > 0 {
		tracer = &reads
	}
	o, err := openOutbox(ctx, p.DB, tracer)
	if err != nil {
		return Sample{}, err
	}
	defer o.close()
	pub, err := p.Broker.ours(warnings())
	if err != nil {
		return Sample{}, err
	}
	defer pub.Close()
	fwd, err := forwarder.New(o.box, pub, forwarder.Config{
		Logger: warnings(), BatchRows: p.Options[batchRows.name], Batches: p.Options[batchesAtOnce.name], ReadAheadRows: p.Options[readAhead.name],
	})
	if err != nil {
		return Sample{}, err
	}
	run, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	begin()
	go func() { ended <- fwd.Run(run) }()
	s, err := drained(ctx, p, func() int { return int(fwd.Stats().Settled) })
	reads.add(&s)
	stop()
	return s, errors.Join(err, <-ended)
}

// drained waits until all is moved or the time is over. The clock stops then: what an orderly end takes
// is not counted.
func drained(ctx context.Context, p params, moved func() int) (Sample, error) {
	begun, cpu := time.Now(), ownCPU()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	var s Sample
	var flat flatness
	for {
		n := moved()
		flat.note(n)
		s.Seconds, s.CPU = time.Since(begun).Seconds(), ownCPU()-cpu
		s.Moved = min(n, p.N)
		switch {
		case n >= p.N:
			s.Extra = map[string]float64{"flat": flat.percent()}
			return s, nil
		case p.Cutoff > 0 && time.Since(begun) > p.Cutoff:
			s.Cut = true
			s.Extra = map[string]float64{"flat": flat.percent()}
			return s, nil
		}
		select {
		case <-ctx.Done():
			return s, fmt.Errorf("ended after %d of %d", n, p.N)
		case <-tick.C:
		}
	}
}
