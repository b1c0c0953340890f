package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/millrace-go/millrace/internal/testenv/servers"
)

// benchCase is one question, put to several participants.
type benchCase struct {
	name       string // as -case matches it
	title      string
	explain    string // what limits it: Markdown for docs/benchmarks.md
	contenders []contender
	columns    []column
	compare    *comparison // nil: nothing to compare
	swept      *swept      // of a sweep: which setting, and where
	rounds     int         // at most; 0: as many as wanted
	short      bool        // a run takes a fraction of a second, and depends on what else the machine does then: shortRounds times as many
}

const shortRounds = 3

// comparison is the column that says how participants do against one of them.
type comparison struct {
	head    string
	base    string
	inverse bool // the base against each one, as a factor; else each one in percent of the base
}

// contender is one participant of a case. Each call is one run from a fresh start.
type contender struct {
	name string
	run  func(ctx context.Context, b *bench, round int) (Sample, error)
}

// column is one figure of the table.
type column struct {
	head   string
	figure figure
	digits int
}

// scale is how much is measured.
type scale struct {
	name   string
	rounds int
	small  int           // messages of a drain
	large  int           // and of a long one
	huge   int           // rows waiting in the backlog case
	cutoff time.Duration // for slow participants
	run    time.Duration // of latencies, and by a multiple of idling
	write  time.Duration // of producers
	sweep  time.Duration // for participants of a sweep, and of confirming
	keys   int           // many
	few    int           // few keys
	extras bool          // also what has no bar
}

// patience is the cutoff of a participant. Those that must succeed get all the time that they need: what is measured is
// to be the whole of it.
func (sc scale) patience(slow bool) time.Duration {
	if !slow {
		return 2 * time.Minute
	}
	return sc.cutoff
}

var scales = map[string]scale{
	"smoke": {
		name: "smoke", rounds: 1, small: 300, large: 1000, huge: 2000, keys: 50, few: 5, extras: true,
		cutoff: 500 * time.Millisecond, run: 200 * time.Millisecond, write: 200 * time.Millisecond, sweep: 2 * time.Minute,
	},
	"quick": {
		name: "quick", rounds: 3, small: 20_000, large: 200_000, huge: 1_000_000, keys: 10_000, few: 20,
		cutoff: 2500 * time.Millisecond, run: 2500 * time.Millisecond, write: 2500 * time.Millisecond, sweep: 2 * time.Second,
	},
	"full": {
		name: "full", rounds: 3, small: 20_000, large: 200_000, huge: 1_000_000, keys: 10_000, few: 20, extras: true,
		cutoff: 15 * time.Second, run: 10 * time.Second, write: 4 * time.Second, sweep: 2500 * time.Millisecond,
	},
	"sweep": {
		name: "sweep", rounds: 3, small: 20_000, huge: 1_000_000, extras: true,
		cutoff: 15 * time.Second, run: 10 * time.Second, write: 4 * time.Second, sweep: 2500 * time.Millisecond,
	},
}

// bench runs cases.
type bench struct {
	fleet     *fleet
	scale     scale
	rounds    int
	profiles  string // folder, or empty
	file      string // for the results, or empty
	log       io.Writer
	templates map[string]string
}

// runCase runs all rounds: in each, the participants come one after the other, so that a change of the
// machine's mood touches all of them.
func (b *bench) runCase(ctx context.Context, c benchCase) []*Series {
	all := make([]*Series, len(c.contenders))
	for i, one := range c.contenders {
		all[i] = &Series{Case: c.name, Participant: one.name}
	}
	rounds := b.rounds
	if c.rounds > 0 {
		rounds = min(rounds, c.rounds)
	}
	if c.short {
		rounds *= shortRounds
	}
	for round := range rounds {
		for i, one := range c.contenders {
			began := time.Now()
			s, err := one.run(ctx, b, round)
			if ctx.Err() != nil {
				return all
			}
			if err != nil {
				s.Err = err.Error()
				fmt.Fprintf(b.log, "%s, %s, round %d: %v\n", c.name, one.name, round+1, err)
			}
			all[i].Samples = append(all[i].Samples, s)
			fmt.Fprintf(b.log, "  %-34s %-26s %d/%d  %9.0f/s  p99 %8.2f ms  (%.1f s)\n",
				c.name, one.name, round+1, rounds, s.Rate(), s.P99, time.Since(began).Seconds())
		}
	}
	return all
}

// template is a database of PostgreSQL that has been filled once and is copied for each run.
func (b *bench) template(ctx context.Context, key string, fill func(ctx context.Context, d database) error) (string, error) {
	if name, ok := b.templates[key]; ok {
		return name, nil
	}
	began := time.Now()
	name, address, err := b.fleet.clone(ctx, "")
	if err != nil {
		return "", err
	}
	if err := b.fleet.admin(ctx, "ALTER DATABASE "+name+" SET synchronous_commit = off"); err != nil {
		return "", err
	}
	if err := fill(ctx, database{servers.Postgres, address}); err != nil {
		return "", fmt.Errorf("fill %s: %w", key, err)
	}
	if err := vacuum(ctx, address); err != nil {
		return "", err
	}
	fmt.Fprintf(b.log, "  filled %s in %.1f s\n", key, time.Since(began).Seconds())
	b.templates[key] = name
	return name, nil
}

// measureChild starts a participant, measures it, and adds what the servers used.
func (b *bench) measureChild(ctx context.Context, p params) (Sample, error) {
	child, err := start(ctx, p)
	if err != nil {
		return Sample{}, err
	}
	before := b.fleet.serverCPU(ctx)
	s, err := child.run()
	s.Servers = since(before, b.fleet.serverCPU(ctx))
	b.saveStatements(ctx, p)
	return s, err
}

// place makes the queue or stream of a run. Its end says how many messages were in it.
func (b *bench) place(ctx context.Context, kind string, roundTrip time.Duration) (broker, func() (int, error), error) {
	return b.placeOf(ctx, kind, topic, roundTrip)
}

func (b *bench) placeOf(ctx context.Context, kind, topic string, roundTrip time.Duration) (broker, func() (int, error), error) {
	at := broker{Kind: kind, Topic: topic}
	a, err := b.fleet.server(ctx, at.server())
	if err != nil {
		return at, nil, err
	}
	direct := at
	direct.URL = a.URL
	if _, err := direct.remove(ctx); err != nil {
		return at, nil, err
	}
	if err := direct.create(); err != nil {
		return at, nil, err
	}
	at.URL, err = b.fleet.slow(a.URL, roundTrip)
	return at, func() (int, error) { return direct.remove(context.WithoutCancel(ctx)) }, err
}

// topic is where all messages go.
const topic = "millrace-bench"

// checkHeld compares what a participant says it moved with what is there.
func checkHeld(s Sample, held int, err error) error {
	if err == nil && held < s.Moved {
		return fmt.Errorf("%d moved, but only %d are in the queue", s.Moved, held)
	}
	return err
}
