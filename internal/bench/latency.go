package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-go/millrace/forwarder"
	"github.com/millrace-go/millrace/internal/testenv/servers"
)

// latency measures the time from a commit that has returned to the message at a consumer, at a steady
// rate of transactions that each write a business row and a message.
type latency struct {
	broker  string
	rate    int
	foreign bool // transactions of somebody else's, one second each, are always open
	poison  bool // one message that cannot be sent comes first
}

func (l latency) name() string {
	name := fmt.Sprintf("latency/%d/%s", l.rate, l.broker)
	if l.foreign {
		name += "/foreign-tx"
	}
	if l.poison {
		name += "/poison"
	}
	return name
}

const (
	outsideName = "millrace, other process"
	quietName   = "millrace, without them" // beside the foreign transactions
)

func (l latency) contender(name string) contender {
	p := params{Rate: l.rate, Writers: 8}
	if l.poison {
		p.Options = map[string]int{"poison": 1}
	}
	switch name {
	case millraceName:
		p.Task = "latency-millrace"
	case quietName:
		p.Task, l.foreign = "latency-millrace", false
	case outsideName:
		p.Task, p.Outside = "latency-millrace", true
	case stockName:
		p.Task = "latency-stock"
	case tunedName:
		p.Task, p.Tuned = "latency-stock", true
	}
	return contender{name, func(ctx context.Context, b *bench, round int) (Sample, error) {
		p := p
		p.Cutoff = min(5*time.Second, b.scale.patience(p.Task == "latency-stock"))
		p.N = int(float64(l.rate) * b.scale.run.Seconds())
		p.Profile = profileFile(b.profiles, l.name(), name, round)
		return l.measure(ctx, b, p)
	}}
}

func (l latency) measure(ctx context.Context, b *bench, p params) (Sample, error) {
	name, address, err := b.fleet.clone(ctx, "")
	if err != nil {
		return Sample{}, err
	}
	defer func() { _ = b.fleet.drop(context.WithoutCancel(ctx), name) }()
	p.DB = database{servers.Postgres, address}
	var end func() (int, error)
	if p.Broker, end, err = b.place(ctx, l.broker, 0); err != nil {
		return Sample{}, err
	}
	defer func() { _, _ = end() }()
	if l.foreign {
		stop, err := b.occupy(ctx)
		if err != nil {
			return Sample{}, err
		}
		defer stop()
	}
	if !p.Outside {
		return b.measureChild(ctx, p)
	}
	// The producer makes the tables, so it is there first, and waits.
	producer, err := start(ctx, p)
	if err != nil {
		return Sample{}, err
	}
	forward := p
	forward.Task = "forward-millrace"
	other, err := start(ctx, forward)
	if err == nil {
		err = other.begin()
	}
	if err != nil {
		return Sample{}, errors.Join(err, producer.end())
	}
	before := b.fleet.serverCPU(ctx)
	s, err := producer.run()
	s.Servers = since(before, b.fleet.serverCPU(ctx))
	forwarder, stopped := other.stop()
	if err == nil && s.Moved > 0 {
		if s.Extra == nil {
			s.Extra = map[string]float64{}
		}
		s.Extra[forwarderCPU] = forwarder.CPU / float64(s.Moved) * 1e6
	}
	return s, errors.Join(err, stopped)
}

// forwarderCPU is the figure of a forwarder in a process of its own.
const forwarderCPU = "forwarder-cpu"

// occupy keeps a foreign transaction that writes open: each for a second, the next one begun before the
// last one ends.
func (b *bench) occupy(ctx context.Context) (stop func(), err error) {
	a, err := b.fleet.server(ctx, servers.Postgres)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	for i := range 2 {
		conn, err := pgx.Connect(ctx, a.URL)
		if err != nil {
			cancel()
			return nil, err
		}
		wg.Go(func() {
			defer conn.Close(context.WithoutCancel(ctx))
			pause(ctx, time.Duration(i)*time.Second/2)
			for ctx.Err() == nil {
				_ = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
					_, err := tx.Exec(ctx, "SELECT pg_current_xact_id()")
					pause(ctx, time.Second)
					return err
				})
			}
		})
	}
	return func() { cancel(); wg.Wait() }, nil
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// latencyOurs runs producers and a consumer, and the forwarder unless it is in another process.
func latencyOurs(ctx context.Context, p params, begin func()) (Sample, error) {
	way := withOurs
	if p.Outside {
		way = withNotify
	}
	if p.Way != "" {
		way = p.Way
	}
	s, err := openShop(ctx, p.DB, way, driverPgx, p.Writers)
	if err != nil {
		return Sample{}, err
	}
	defer s.close()
	if p.Outside {
		return produceAndConsume(ctx, p, s, begin)
	}
	run, stop := context.WithCancel(ctx)
	defer stop()
	ended, err := forwardOurs(run, p, s)
	if err != nil {
		return Sample{}, err
	}
	sample, err := produceAndConsume(ctx, p, s, begin)
	stop()
	return sample, errors.Join(err, <-ended)
}

// forwardOurs starts a forwarder and returns when it holds its lanes.
func forwardOurs(ctx context.Context, p params, s *shop) (<-chan error, error) {
	pub, err := p.Broker.ours(warnings())
	if err != nil {
		return nil, err
	}
	fwd, err := forwarder.New(s.box, pub, forwarder.Config{Logger: warnings()})
	if err != nil {
		return nil, err
	}
	ended := make(chan error, 1)
	go func() {
		err := fwd.Run(ctx)
		ended <- errors.Join(err, pub.Close())
	}()
	for fwd.Stats().Lanes == 0 && ctx.Err() == nil {
		time.Sleep(time.Millisecond)
	}
	return ended, nil
}

// forwardOutside is a process that forwards until it is told to end.
func forwardOutside(ctx context.Context, p params, begin func()) (Sample, error) {
	s, err := openShop(context.WithoutCancel(ctx), p.DB, withNotify, driverPgx, 4)
	if err != nil {
		return Sample{}, err
	}
	defer s.close()
	ended, err := forwardOurs(ctx, p, s)
	if err != nil {
		return Sample{}, err
	}
	begin()
	return Sample{}, <-ended
}

func latencyStock(ctx context.Context, p params, begin func()) (Sample, error) {
	s, err := openShop(ctx, p.DB, withStock, driverPgx, p.Writers)
	if err != nil {
		return Sample{}, err
	}
	defer s.close()
	fwd, err := openStock(p)
	if err != nil {
		return Sample{}, err
	}
	defer fwd.close()
	run, stop := context.WithCancel(ctx)
	defer stop()
	go func() { _ = fwd.Run(run) }()
	<-fwd.Running()
	return produceAndConsume(ctx, p, s, begin)
}

// warmUp is the part of the messages, one in so many, that is sent first and not counted.
const warmUp = 10

func produceAndConsume(ctx context.Context, p params, s *shop, begin func()) (Sample, error) {
	c := newClock(p.N)
	stop, err := p.Broker.consume(ctx, c.receive)
	if err != nil {
		return Sample{}, err
	}
	defer stop()
	if p.Options["poison"] > 0 {
		if err := s.poison(ctx); err != nil {
			return Sample{}, err
		}
	}
	begin()
	begun := time.Now()
	err = pace(ctx, p.N, p.Rate, p.Writers, func(seq int) error {
		err := s.order(ctx, seq)
		c.commit(seq, time.Now())
		return err
	})
	if err != nil {
		return Sample{}, err
	}
	sample := Sample{Moved: p.N, Seconds: time.Since(begun).Seconds()}
	for deadline := time.Now().Add(p.Cutoff); c.missing() > 0 && time.Now().Before(deadline); {
		time.Sleep(5 * time.Millisecond)
	}
	if n := c.missing(); n > 0 {
		sample.Extra = map[string]float64{"missing": float64(n)}
	}
	sample.percentiles(c.latencies(p.N / warmUp))
	return sample, nil
}

var latencyColumns = []column{
	{"p50 ms", p50, 2},
	{"p99 ms", p99, 2},
	{"p99.9 ms", func(s Sample) float64 { return s.P999 }, 2},
	{"own CPU µs/msg", cpuPerMessage, 0},
	{"forwarder's CPU µs/msg", extra(forwarderCPU), 0},
	{"PostgreSQL µs/msg", serverPerMessage("postgres"), 0},
	{"not delivered", extra("missing"), 0},
}

func poisonCases(sc scale) []benchCase {
	l := latency{broker: classic, rate: 200, poison: true}
	c := benchCase{
		name: l.name(), title: "Latency at 200 messages/s to rabbitmq-classic, with one message that cannot be sent",
		explain: poisonExplained, columns: latencyColumns, rounds: 1,
		contenders: []contender{l.contender(millraceName)},
	}
	if sc.extras {
		c.contenders = append(c.contenders, l.contender(tunedName))
	}
	return []benchCase{c}
}

func latencyCases(sc scale) (all []benchCase) {
	add := func(l latency, who ...string) {
		title := fmt.Sprintf("Latency at %d messages/s to %s", l.rate, l.broker)
		if l.foreign {
			title += ", under foreign transactions of 1 s"
		}
		c := benchCase{name: l.name(), title: title, explain: latencyExplained, columns: latencyColumns}
		for _, name := range who {
			c.contenders = append(c.contenders, l.contender(name))
		}
		all = append(all, c)
	}
	for _, to := range []string{classic, streams} {
		if !sc.extras {
			add(latency{broker: to, rate: 200}, millraceName, outsideName)
			add(latency{broker: to, rate: 200, foreign: true}, millraceName, quietName)
			continue
		}
		add(latency{broker: to, rate: 200}, millraceName, outsideName, stockName, tunedName)
		add(latency{broker: to, rate: 200, foreign: true}, millraceName, quietName, tunedName)
		add(latency{broker: to, rate: 1000}, millraceName, outsideName, tunedName)
		add(latency{broker: to, rate: 1000, foreign: true}, millraceName, quietName, tunedName)
	}
	return all
}
