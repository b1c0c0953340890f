package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// backlogCase is a drain of an outbox in which very much waits: what it costs to have a backlog.
func backlogName(sc scale) string { return fmt.Sprintf("backlog/%dk", sc.huge/1000) }

func backlogCases(sc scale) []benchCase {
	d := drain{n: sc.huge, broker: streams, once: true}
	c := benchCase{
		name: backlogName(sc), title: fmt.Sprintf("%d messages waiting, to Redis", sc.huge), explain: backlogExplained, rounds: 1,
		columns: append(slices.Clone(drainColumns), column{"slowest tenth, % of the fastest", extra("flat"), 0},
			column{"a read p50 ms", p50, 1}, column{"p99 ms", p99, 1}),
	}
	for _, one := range []struct {
		name string
		drain
	}{{millraceName, d}, {fmt.Sprintf("millrace, %d waiting", sc.small), drain{n: sc.small, broker: streams}}} {
		c.contenders = append(c.contenders, contender{one.name, func(ctx context.Context, b *bench, round int) (Sample, error) {
			return one.measure(ctx, b, params{
				Task: "drain-millrace", N: one.n, Cutoff: b.scale.patience(false), Options: map[string]int{timeReads: 1},
				Profile: profileFile(b.profiles, c.name, one.name, round),
			}, "millrace")
		}})
	}
	return []benchCase{c}
}

// timeReads is the option of a participant that notes how long its reads take.
const timeReads = "time-reads"

// readTimes are how long the reads of a forwarder took, until the last row was there.
type readTimes struct {
	mu  sync.Mutex
	all []time.Duration
}

type readBegun struct{}

// TraceQueryStart implements pgx.QueryTracer.
func (*readTimes) TraceQueryStart(ctx context.Context, _ *pgx.Conn, q pgx.TraceQueryStartData) context.Context {
	if strings.Contains(q.SQL, "FROM millrace_outbox") && strings.Contains(q.SQL, "o.payload") {
		return context.WithValue(ctx, readBegun{}, time.Now())
	}
	return ctx
}

// TraceQueryEnd implements pgx.QueryTracer.
func (r *readTimes) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, q pgx.TraceQueryEndData) {
	begun, ok := ctx.Value(readBegun{}).(time.Time)
	if !ok || q.CommandTag.RowsAffected() == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, time.Since(begun))
}

// add writes the times into a sample.
func (r *readTimes) add(s *Sample) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s.percentiles(r.all)
}

// fillMany publishes one message in ten and has the server copy the rest, under new ids.
func fillMany(ctx context.Context, d database, topic string, n int) error {
	const times = 10
	if err := fillOurs(ctx, d, topic, n/times, 0); err != nil {
		return err
	}
	conn, err := pgx.Connect(ctx, d.URL)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	_, err = conn.Exec(ctx, `INSERT INTO millrace_outbox (id, lane, topic, order_key, size, metadata, payload)
		SELECT gen_random_uuid()::text, lane, topic, order_key, size, metadata, payload
		FROM generate_series(2, $1::int), millrace_outbox`, times)
	return err
}

// flatness looks at how much was moved in each tenth of the time.
type flatness struct {
	begun time.Time
	at    []time.Duration
	moved []int
}

func (f *flatness) note(moved int) {
	if f.begun.IsZero() {
		f.begun = time.Now()
	}
	f.at, f.moved = append(f.at, time.Since(f.begun)), append(f.moved, moved)
}

// percent is the slowest tenth's rate in percent of the fastest one's. The first tenth holds the start
// and is left out.
func (f *flatness) percent() float64 {
	if len(f.at) < 100 {
		return 100
	}
	total := f.at[len(f.at)-1]
	var rates []float64
	last, lastAt, next := 0, time.Duration(0), 1
	for i, at := range f.at {
		if at >= total*time.Duration(next)/10 {
			rates = append(rates, float64(f.moved[i]-last)/(at-lastAt).Seconds())
			last, lastAt = f.moved[i], at
			next++
		}
	}
	rates = rates[1:]
	return slices.Min(rates) / slices.Max(rates) * 100
}
