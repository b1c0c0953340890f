package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/millrace-go/millrace/internal/testenv/servers"
)

// confirming measures what it costs a consumer to tell the producer that it is done with a message.
type confirming struct {
	broker    string
	handler   string
	roundTrip time.Duration
}

// What the handler does.
const (
	// remembered: nothing, and Redis remembers the message.
	remembered = "remembered"
	// inboxPgx and inboxSQL: it writes a row, in the transaction in which the inbox remembers the message.
	inboxPgx = "inbox-pgx"
	inboxSQL = "inbox-sql"
)

// How it confirms.
const (
	silentName     = "without"
	backgroundName = "millrace, in the background"
	waitingName    = "millrace, waiting"
	insideName     = "millrace, in the transaction"
)

// confirmTopic is where confirmations go.
const confirmTopic = "millrace-bench-confirmations"

// confirmConcurrency is how many messages are in hand: with a database, as many connections as one process has.
var confirmConcurrency = map[string]int{remembered: 100, inboxPgx: 20, inboxSQL: 20}

func (c confirming) name() string {
	name := "confirm/" + c.broker + "/" + c.handler
	if c.roundTrip > 0 {
		name += "/" + c.roundTrip.String()
	}
	return name
}

func (c confirming) title() string {
	what := map[string]string{
		remembered: "each message handled once, remembered in Redis",
		inboxPgx:   "a row and the inbox in one transaction, native pgx",
		inboxSQL:   "a row and the inbox in one transaction, database/sql",
	}
	return fmt.Sprintf("Confirming messages from %s, %s, round trip %v", c.broker, what[c.handler], c.roundTrip)
}

func (c confirming) contender(name string) contender {
	return contender{name, func(ctx context.Context, b *bench, round int) (Sample, error) {
		return c.measure(ctx, b, params{
			Task: "confirm", Way: name, Handler: c.handler, Words: confirmTopic, N: b.scale.small / 2, Cutoff: b.scale.sweep,
			Options: map[string]int{concurrency.name: confirmConcurrency[c.handler]}, Profile: profileFile(b.profiles, c.name(), name, round),
		})
	}}
}

func (c confirming) measure(ctx context.Context, b *bench, p params) (s Sample, err error) {
	at, end, err := b.place(ctx, c.broker, c.roundTrip)
	if err != nil {
		return Sample{}, err
	}
	defer func() { _, _ = end() }()
	_, words, err := b.placeOf(ctx, c.broker, confirmTopic, 0)
	if err != nil {
		return Sample{}, err
	}
	defer func() {
		held, gone := words()
		if p.Way == backgroundName || p.Way == waitingName {
			gone = checkHeld(Sample{Moved: int(s.Extra[storedWords])}, held, gone)
		}
		err = errors.Join(err, gone)
	}()
	direct := at
	direct.URL = b.fleet.started[at.server()].URL
	if fill, err := b.measureChild(ctx, params{Task: "raw-broker", Broker: direct, N: p.N, Words: p.Words}); err != nil {
		return fill, err
	}
	p.Broker = at
	done, err := c.memory(ctx, b, &p)
	if err != nil {
		return Sample{}, err
	}
	defer done()
	return b.measureChild(ctx, p)
}

// memory is where messages are remembered: a database of its own, or a name of its own in Redis.
func (c confirming) memory(ctx context.Context, b *bench, p *params) (done func(), err error) {
	if c.handler == remembered {
		a, err := b.fleet.server(ctx, servers.Redis)
		if err != nil {
			return nil, err
		}
		p.Dedup, err = b.fleet.slow(a.URL, c.roundTrip)
		return func() {}, err
	}
	name, address, err := b.fleet.clone(ctx, "")
	if err != nil {
		return nil, err
	}
	p.DB.Kind = servers.Postgres
	p.DB.URL, err = b.fleet.slow(address, c.roundTrip)
	return func() { _ = b.fleet.drop(context.WithoutCancel(ctx), name) }, err
}

func confirmCases(sc scale) (all []benchCase) {
	add := func(c confirming, who ...string) {
		one := benchCase{
			name: c.name(), title: c.title(), explain: confirmExplained, columns: drainColumns,
			compare: &comparison{head: "of the rate without", base: silentName},
		}
		for _, name := range who {
			one.contenders = append(one.contenders, c.contender(name))
		}
		all = append(all, one)
	}
	for _, to := range []string{classic, streams} {
		if !sc.extras {
			add(confirming{to, inboxPgx, 2 * time.Millisecond}, silentName, backgroundName, insideName)
			add(confirming{to, remembered, 0}, silentName, backgroundName)
			continue
		}
		for _, roundTrip := range []time.Duration{2 * time.Millisecond, 0} {
			add(confirming{to, remembered, roundTrip}, silentName, backgroundName, waitingName)
			add(confirming{to, inboxPgx, roundTrip}, silentName, backgroundName, waitingName, insideName)
			add(confirming{to, inboxSQL, roundTrip}, silentName, backgroundName, waitingName, insideName)
		}
	}
	return all
}

// confirmBars: at most a tenth of the throughput. In the transaction that holds where the network is what takes the time; on
// loopback another row costs what it costs, and is reported.
func (r *report) confirmBars() (all []bar) {
	add := func(c confirming, who string) {
		if s := r.find(c.name(), who); s != nil {
			all = append(all, bar{what: c.name() + ", " + who + ": of the rate without", unit: " %", limit: 90,
				value: ratio(s, r.find(c.name(), silentName), rate).times(100)})
		}
	}
	for _, to := range []string{classic, streams} {
		for _, handler := range []string{remembered, inboxPgx, inboxSQL} {
			for _, roundTrip := range []time.Duration{0, 2 * time.Millisecond} {
				add(confirming{to, handler, roundTrip}, backgroundName)
			}
			add(confirming{to, handler, 2 * time.Millisecond}, insideName)
		}
	}
	return all
}
