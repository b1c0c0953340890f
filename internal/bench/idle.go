package main

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millrace-go/millrace/internal/testenv/servers"
	"github.com/millrace-go/millrace/outbox"
	"github.com/millrace-go/millrace/pgxtx"
)

// tracer counts statements.
type tracer struct{ all, renewals atomic.Int64 }

func (t *tracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, q pgx.TraceQueryStartData) context.Context {
	t.all.Add(1)
	if strings.HasPrefix(q.SQL, "UPDATE millrace_forwarders") {
		t.renewals.Add(1)
	}
	return ctx
}

func (t *tracer) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// settleDown is the time that a forwarder gets to become quiet.
const settleDown = 3 * time.Second

// idleOurs runs a forwarder over an empty outbox.
func idleOurs(ctx context.Context, p params, begin func()) (Sample, error) {
	cfg, err := pgxpool.ParseConfig(p.DB.URL)
	if err != nil {
		return Sample{}, err
	}
	count := &tracer{}
	cfg.ConnConfig.Tracer = count
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return Sample{}, err
	}
	defer pool.Close()
	box, err := outbox.New(pgxtx.Pool(pool), outbox.Config{})
	if err != nil {
		return Sample{}, err
	}
	if err := box.Migrate(ctx); err != nil {
		return Sample{}, err
	}
	run, stop := context.WithCancel(ctx)
	defer stop()
	ended, err := forwardOurs(run, p, &shop{box: box})
	if err != nil {
		return Sample{}, err
	}
	pause(ctx, min(settleDown, p.Cutoff))
	beside, err := pgx.Connect(ctx, p.DB.URL)
	if err != nil {
		return Sample{}, err
	}
	defer beside.Close(context.WithoutCancel(ctx))
	begin()
	xids, err := nextXID(ctx, beside)
	if err != nil {
		return Sample{}, err
	}
	queries, renewals, cpu, begun := count.all.Load(), count.renewals.Load(), ownCPU(), time.Now()
	pause(ctx, p.Cutoff)
	seconds := time.Since(begun).Seconds()
	used, err := nextXID(ctx, beside)
	s := Sample{Seconds: seconds, CPU: ownCPU() - cpu}
	q, r := count.all.Load()-queries, count.renewals.Load()-renewals
	s.Moved = int(q)
	s.Extra = map[string]float64{
		"cpu": s.CPU / seconds * 100, "queries": float64(q) / seconds,
		"xids": float64(used - xids), "renewals": float64(r),
	}
	stop()
	return s, errors.Join(err, <-ended)
}

// nextXID looks without taking one.
func nextXID(ctx context.Context, conn *pgx.Conn) (int64, error) {
	var text string
	if err := conn.QueryRow(ctx, "SELECT pg_snapshot_xmax(pg_current_snapshot())::text").Scan(&text); err != nil {
		return 0, err
	}
	return strconv.ParseInt(text, 10, 64)
}

const idleCase = "idle"

func idleCases(sc scale) []benchCase {
	return []benchCase{{
		name: idleCase, title: "A forwarder with nothing to do, default settings", explain: idleExplained, rounds: 1,
		columns: []column{
			{"% of a core", extra("cpu"), 2}, {"statements/s", extra("queries"), 1},
			{"transaction ids", extra("xids"), 0}, {"renewals of the lease", extra("renewals"), 0}, {"RSS MB", rssMB, 0},
		},
		contenders: []contender{{millraceName, func(ctx context.Context, b *bench, round int) (Sample, error) {
			name, address, err := b.fleet.clone(ctx, "")
			if err != nil {
				return Sample{}, err
			}
			defer func() { _ = b.fleet.drop(context.WithoutCancel(ctx), name) }()
			at, end, err := b.place(ctx, streams, 0)
			if err != nil {
				return Sample{}, err
			}
			defer func() { _, _ = end() }()
			return b.measureChild(ctx, params{
				Task: "idle-millrace", DB: database{servers.Postgres, address}, Broker: at, Cutoff: 3 * b.scale.run,
				Profile: profileFile(b.profiles, idleCase, millraceName, round),
			})
		}}},
	}}
}

// idleOther counts the transaction ids that no renewal explains; those of the server's own work, such as
// an ANALYZE, are among them.
func idleOther(s Sample) float64 { return s.Extra["xids"] - s.Extra["renewals"] }
