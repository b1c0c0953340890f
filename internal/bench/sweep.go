package main

import (
	"context"
	"fmt"
	"time"
)

// knob is a setting, of which several values are compared.
type knob struct {
	name   string // in names of cases, and as the option of a participant
	title  string // as the documentation calls it
	values []int  // upwards, the default among them
	normal int    // the default
	unit   string
	text   string // what it changes: Markdown for docs/benchmarks.md
}

// swept is the knob that a case turns, and where.
type swept struct {
	knob   knob
	place  string // the head of its columns in the table of the knob
	figure []column
}

// The knobs of the forwarder, of the wake-up and of consumers.
var (
	batchRows = knob{name: "batch-rows", title: "forwarder.Config.BatchRows", values: []int{50, 100, 250, 500, 1000, 2000}, normal: 500,
		text: batchRowsText}
	batchesAtOnce = knob{name: "batches", title: "forwarder.Config.Batches", values: []int{1, 2, 4, 8, 16}, normal: 4, text: batchesText}
	readAhead     = knob{name: "read-ahead", title: "forwarder.Config.ReadAheadRows", values: []int{500, 1000, 3000, 9000}, normal: 3000,
		text: readAheadText}
	replicas    = knob{name: "replicas", title: "Forwarders that share the lanes", values: []int{1, 2, 4}, normal: 1, text: replicasText}
	debounce    = knob{name: "debounce", title: "Pause between two notes of an outbox.Waker", values: []int{0, 2, 5, 10, 20}, normal: 5, unit: " ms", text: debounceText}
	concurrency = knob{name: "concurrency", title: "Concurrency of a subscriber", values: []int{1, 5, 10, 30, 100, 300}, normal: 10, text: concurrencyText}
)

// label names a participant.
func (k knob) label(value int) string {
	text := fmt.Sprintf("%d%s", value, k.unit)
	if value == k.normal {
		text += " (default)"
	}
	return text
}

// of are the values that a scale compares.
func (k knob) of(sc scale) []int {
	if sc.name != "smoke" {
		return k.values
	}
	if first := k.values[0]; first != k.normal {
		return []int{first, k.normal}
	}
	return k.values[:2]
}

// caseOf is the case of a knob in one place.
func (k knob) caseOf(sc scale, name, place, title string, columns []column, figures []column, run func(value int, name string) contender) benchCase {
	c := benchCase{
		name: "sweep/" + k.name + "/" + name, title: k.title + ": " + title, columns: columns, rounds: max(1, sc.rounds-1), // values beside each other say whether one of them is off
		compare: &comparison{head: "of the default", base: k.label(k.normal)}, swept: &swept{k, place, figures},
	}
	for _, v := range k.of(sc) {
		c.contenders = append(c.contenders, run(v, c.name))
	}
	return c
}

// somewhere is a broker behind a network.
type somewhere struct {
	broker    string
	roundTrip time.Duration
}

func (s somewhere) name() string {
	if s.roundTrip == 0 {
		return s.broker
	}
	return s.broker + "/" + s.roundTrip.String()
}

func (s somewhere) title() string {
	name := map[string]string{classic: "RabbitMQ", streams: "Redis"}[s.broker]
	if s.roundTrip == 0 {
		return name
	}
	return fmt.Sprintf("%s, %d ms", name, s.roundTrip.Milliseconds())
}

var rateOnly = []column{{"", rate, 0}}

func sweepCases(sc scale) (all []benchCase) {
	if !sc.extras {
		return nil
	}
	near := []somewhere{{classic, 0}, {streams, 0}}
	far := []somewhere{{classic, 2 * time.Millisecond}, {streams, 2 * time.Millisecond}}
	everywhere := []somewhere{near[0], far[0], near[1], far[1]}
	drains := func(k knob, places []somewhere) {
		for _, at := range places {
			d := drain{n: sc.small, broker: at.broker, roundTrip: at.roundTrip}
			all = append(all, k.caseOf(sc, at.name(), at.title(), "drain, "+at.title(), drainColumns, rateOnly,
				func(v int, name string) contender { return d.turned(k, v, name) }))
		}
	}
	drains(batchRows, everywhere)
	drains(batchesAtOnce, everywhere)
	drains(readAhead, far) // on loopback the pipeline is never long
	drains(replicas, everywhere)
	all = append(all, debounceCases(sc)...)
	for _, at := range everywhere {
		c := consume(at)
		all = append(all, concurrency.caseOf(sc, at.name(), at.title(), "each message handled once, "+at.title(), drainColumns, rateOnly,
			func(v int, name string) contender { return c.turned(concurrency, v, name) }))
	}
	return all
}

// turned is a drain with another value of a knob.
func (d drain) turned(k knob, value int, name string) contender {
	return contender{k.label(value), func(ctx context.Context, b *bench, round int) (Sample, error) {
		p := params{
			Task: "drain-millrace", N: d.n, Cutoff: b.scale.sweep, Options: map[string]int{k.name: value},
			Profile: profileFile(b.profiles, name, k.label(value), round),
		}
		if k.name == replicas.name {
			p.Task = "drain-replicas"
		}
		return d.measure(ctx, b, p, "millrace")
	}}
}

// turned is a consumer with another concurrency.
func (c consume) turned(k knob, value int, name string) contender {
	return contender{k.label(value), func(ctx context.Context, b *bench, round int) (Sample, error) {
		return c.measure(ctx, b, params{
			Task: "consume-millrace", N: b.scale.small / 2, Cutoff: b.scale.sweep, Options: map[string]int{k.name: value},
			Profile: profileFile(b.profiles, name, k.label(value), round),
		})
	}}
}
