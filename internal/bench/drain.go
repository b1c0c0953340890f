package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-go/millrace/internal/testenv/servers"
)

// drain empties an outbox on PostgreSQL that holds n messages into a broker that nobody consumes from.
type drain struct {
	n         int
	broker    string
	keys      int
	roundTrip time.Duration
	once      bool // the database is made for one run
}

func (d drain) name() string {
	name := fmt.Sprintf("drain/%dk/%s", d.n/1000, d.broker)
	if d.n < 1000 {
		name = fmt.Sprintf("drain/%d/%s", d.n, d.broker)
	}
	if d.keys > 0 {
		name += fmt.Sprintf("/%d-keys", d.keys)
	}
	if d.roundTrip > 0 {
		name += "/" + d.roundTrip.String()
	}
	return name
}

// Participants of a drain.
const (
	millraceName = "millrace"
	stockName    = "watermill"
	tunedName    = "watermill, tuned"
	oagudoName   = "oagudo/outbox, tuned"
	rawName      = "limit: broker alone"
	rawDBName    = "limit: database alone"
)

func (d drain) contender(name string) contender {
	p := params{N: d.n}
	var source string
	switch name {
	case millraceName:
		p.Task, source = "drain-millrace", "millrace"
	case stockName:
		p.Task, source = "drain-stock", "stock"
	case tunedName:
		p.Task, source, p.Tuned = "drain-stock", "stock", true
	case oagudoName:
		p.Task, source = "drain-oagudo", "oagudo"
	case rawName:
		p.Task = "raw-broker"
	case rawDBName:
		p.Task, source = "raw-database", "millrace"
	}
	return contender{name, func(ctx context.Context, b *bench, round int) (Sample, error) {
		p := p
		p.Cutoff = b.scale.patience(source == "stock" || source == "oagudo")
		p.Profile = profileFile(b.profiles, d.name(), name, round)
		return d.measure(ctx, b, p, source)
	}}
}

func (d drain) measure(ctx context.Context, b *bench, p params, source string) (Sample, error) {
	if source != "" {
		done, err := d.prepare(ctx, b, &p, source)
		if err != nil {
			return Sample{}, err
		}
		defer done()
	}
	var end func() (int, error)
	var err error
	if p.Broker, end, err = b.place(ctx, d.broker, d.roundTrip); err != nil {
		return Sample{}, err
	}
	s, err := b.measureChild(ctx, p)

	held, gone := end()
	if p.Task != "raw-database" {
		gone = checkHeld(s, held, gone)
	}
	return s, errors.Join(err, gone)
}

// prepare gives the run a database of its own that holds the messages.
func (d drain) prepare(ctx context.Context, b *bench, p *params, source string) (func(), error) {
	key := fmt.Sprintf("%s/%d/%d", source, d.n, d.keys)
	template, err := b.template(ctx, key, func(ctx context.Context, at database) error {
		switch source {
		case "stock":
			return fillStock(ctx, at, topic, d.n)
		case "oagudo":
			return fillOagudo(ctx, at, d.n)
		}
		if d.once {
			return fillMany(ctx, at, topic, d.n)
		}
		return fillOurs(ctx, at, topic, d.n, d.keys)
	})
	if err != nil {
		return nil, err
	}
	name, address := template, ""
	if d.once {
		delete(b.templates, key)
		address, err = b.fleet.address(ctx, template)
	} else {
		name, address, err = b.fleet.clone(ctx, template)
	}
	if err != nil {
		return nil, err
	}
	p.DB.Kind = servers.Postgres
	p.DB.URL, err = b.fleet.slow(address, d.roundTrip)
	return func() { _ = b.fleet.drop(context.WithoutCancel(ctx), name) }, err
}

func vacuum(ctx context.Context, address string) error {
	conn, err := pgx.Connect(ctx, address)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, "VACUUM ANALYZE")
	return err
}

var drainColumns = []column{
	{"msg/s", rate, 0},
	{"own CPU µs/msg", cpuPerMessage, 1},
	{"PostgreSQL µs/msg", serverPerMessage("postgres"), 1},
	{"MariaDB µs/msg", serverPerMessage("mariadb"), 1},
	{"RabbitMQ µs/msg", serverPerMessage("rabbitmq"), 1},
	{"Redis µs/msg", serverPerMessage("redis"), 1},
	{"RSS MB", rssMB, 0},
}

// oursAgainst is how many times as fast as each other one millrace is.
var oursAgainst = &comparison{head: "millrace is", base: millraceName, inverse: true}

// drainCases are the drains of PostgreSQL.
func drainCases(sc scale) []benchCase {
	const roundTrip = 2 * time.Millisecond
	var all []benchCase
	add := func(d drain, title, explain string, who ...string) {
		c := benchCase{name: d.name(), title: title, explain: explain, columns: drainColumns, compare: oursAgainst}
		c.short = d.broker == streams && d.n == sc.small && d.roundTrip == 0
		for _, name := range who {
			c.contenders = append(c.contenders, d.contender(name))
		}
		all = append(all, c)
	}
	for _, to := range []string{classic, quorum, streams} {
		who := []string{millraceName, stockName, tunedName, oagudoName, rawName}
		switch {
		case to == quorum && !sc.extras:
			who = []string{millraceName, rawName}
		case !sc.extras:
			who = []string{millraceName, stockName, tunedName, rawName}
		case to == streams:
			who = append(who, rawDBName)
		}
		add(drain{n: sc.small, broker: to}, fmt.Sprintf("Drain of %d messages to %s", sc.small, to), drainExplained[to], who...)
	}
	for _, to := range []string{classic, quorum, streams} {
		if to == quorum && !sc.extras {
			continue
		}
		who := []string{millraceName, stockName}
		if sc.extras {
			who = append(who, rawName)
		}
		add(drain{n: sc.large, broker: to}, fmt.Sprintf("Drain of %d messages to %s", sc.large, to), largeExplained, who...)
	}
	for _, to := range []string{classic, quorum, streams} {
		who := []string{millraceName, stockName}
		switch {
		case to == quorum && !sc.extras:
			continue
		case to == quorum:
			who = []string{millraceName, rawName}
		case sc.extras:
			who = append(who, tunedName)
		}
		add(drain{n: sc.small, broker: to, roundTrip: roundTrip},
			fmt.Sprintf("Drain of %d messages to %s, each round trip 2 ms", sc.small, to), slowExplained, who...)
	}
	if !sc.extras {
		return all
	}
	for _, to := range []string{classic, quorum, streams} {
		add(drain{n: sc.large, broker: to, roundTrip: roundTrip},
			fmt.Sprintf("Drain of %d messages to %s, each round trip 2 ms", sc.large, to), slowExplained, millraceName)
	}
	return append(all, keyedCases(sc)...)
}

// keyedCases compare what keys cost: the same messages without, of many and of few keys.
func keyedCases(sc scale) (all []benchCase) {
	for _, roundTrip := range []time.Duration{0, 2 * time.Millisecond} {
		for _, to := range []string{classic, quorum, streams} {
			plain := drain{n: sc.small, broker: to, roundTrip: roundTrip}
			c := benchCase{
				name: strings.Replace(plain.name(), "drain/", "drain-keys/", 1), title: fmt.Sprintf("Drain of %d messages with keys to %s, round trip %v", sc.small, to, roundTrip),
				explain: keysExplained, columns: drainColumns, compare: &comparison{head: "of the rate without keys", base: noKeysName},
			}
			for _, keys := range []int{0, sc.keys, sc.few} {
				d, name := plain, noKeysName
				if keys > 0 {
					name = fmt.Sprintf("millrace, %d keys", keys)
				}
				d.keys = keys
				c.contenders = append(c.contenders, contender{name, func(ctx context.Context, b *bench, round int) (Sample, error) {
					return d.measure(ctx, b, params{
						Task: "drain-millrace", N: d.n, Cutoff: b.scale.patience(false), Profile: profileFile(b.profiles, c.name, name, round),
					}, "millrace")
				}})
			}
			all = append(all, c)
		}
	}
	return all
}

// noKeysName is the participant without keys.
const noKeysName = "millrace, no keys"
