package main

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/millrace-go/millrace/internal/testenv/servers"
)

// producer measures what a message costs the transaction that writes it: transactions a second of so
// many writers, each with one business row.
type producer struct {
	writers   int
	driver    int
	roundTrip time.Duration
}

func (p producer) name() string {
	name := fmt.Sprintf("producer/%s/%d-writers", map[int]string{driverPgx: "pgx", driverSQL: "sql"}[p.driver], p.writers)
	if p.roundTrip > 0 {
		name += "/" + p.roundTrip.String()
	}
	return name
}

func (p producer) contender(way string) contender {
	return contender{way, func(ctx context.Context, b *bench, round int) (Sample, error) {
		return p.measure(ctx, b, params{Way: way, Cutoff: b.scale.write, Profile: profileFile(b.profiles, p.name(), way, round)})
	}}
}

func (p producer) measure(ctx context.Context, b *bench, how params) (Sample, error) {
	name, address, err := b.fleet.clone(ctx, "")
	if err != nil {
		return Sample{}, err
	}
	defer func() { _ = b.fleet.drop(context.WithoutCancel(ctx), name) }()
	slow, err := b.fleet.slow(address, p.roundTrip)
	if err != nil {
		return Sample{}, err
	}
	how.Task, how.DB, how.Writers, how.Driver = "produce", database{servers.Postgres, slow}, p.writers, p.driver
	return b.measureChild(ctx, how)
}

// produce writes as fast as it can for Cutoff. Of millrace's outbox, somebody listens to the wake-ups
// and nobody takes messages away.
func produce(ctx context.Context, p params, begin func()) (Sample, error) {
	s, err := openShop(ctx, p.DB, p.Way, p.Driver, p.Writers)
	if err != nil {
		return Sample{}, err
	}
	defer s.close()
	if s.box != nil {
		wake, cancel := s.box.Subscribe()
		defer cancel()
		ctx, stop := context.WithCancel(ctx)
		defer stop()
		go func() {
			for {
				select {
				case <-wake.C():
					wake.Take()
				case <-ctx.Done():
					return
				}
			}
		}()
	}
	// Connections are opened and statements prepared before the clock runs.
	if _, _, err := writeFor(ctx, s, p.Writers, p.Cutoff/10, 0); err != nil {
		return Sample{}, err
	}
	begin()
	begun := time.Now()
	n, latencies, err := writeFor(ctx, s, p.Writers, p.Cutoff, 1<<30)
	sample := Sample{Moved: n, Seconds: time.Since(begun).Seconds()}
	sample.percentiles(latencies)
	return sample, err
}

func writeFor(ctx context.Context, s *shop, writers int, d time.Duration, first int) (int, []time.Duration, error) {
	var (
		next   atomic.Int64
		wg     sync.WaitGroup
		mu     sync.Mutex
		all    []time.Duration
		failed error
	)
	next.Store(int64(first))
	until := time.Now().Add(d)
	for range writers {
		wg.Go(func() {
			var own []time.Duration
			var err error
			for err == nil && time.Now().Before(until) {
				begun := time.Now()
				err = s.order(ctx, int(next.Add(1)))
				own = append(own, time.Since(begun))
			}
			mu.Lock()
			defer mu.Unlock()
			all = append(all, own...)
			if err != nil {
				failed = err
			}
		})
	}
	wg.Wait()
	return len(all), all, failed
}

var producerColumns = []column{
	{"transactions/s", rate, 0},
	{"p50 ms", p50, 2},
	{"p99 ms", p99, 2},
	{"own CPU µs", cpuPerMessage, 0},
	{"PostgreSQL µs", serverPerMessage("postgres"), 0},
}

func producerCases(sc scale) (all []benchCase) {
	for _, p := range []producer{
		{8, driverPgx, 0},
		{8, driverPgx, 2 * time.Millisecond},
		{1, driverPgx, 0},
		{1, driverPgx, 2 * time.Millisecond},
		{32, driverPgx, 0},
		{32, driverPgx, 2 * time.Millisecond},
		{8, driverSQL, 0},
		{8, driverSQL, 2 * time.Millisecond},
	} {
		if !sc.extras && (p.writers != 8 || p.driver != driverPgx) {
			continue
		}
		c := benchCase{
			name: p.name(), title: fmt.Sprintf("Transactions of %d writers, %s, round trip %v",
				p.writers, map[int]string{driverPgx: "native pgx", driverSQL: "database/sql"}[p.driver], p.roundTrip),
			explain: producerExplained, columns: producerColumns, compare: &comparison{head: "of the row alone", base: rowOnly},
		}
		for _, way := range []string{rowOnly, withStock, withOurs, withNotify, withPlain} {
			if way == withStock && !sc.extras || (way == withNotify || way == withPlain) && p.driver != driverPgx {
				continue
			}
			c.contenders = append(c.contenders, p.contender(way))
		}
		all = append(all, c)
	}
	return all
}
