package main

import (
	"fmt"
	"math"
	"time"
)

// bar is what has to be reached.
type bar struct {
	what   string
	unit   string
	limit  float64
	atMost bool
	value  spread
	digits int
}

func (b bar) met() bool {
	if math.IsNaN(b.value.Median) {
		return false
	}
	if b.atMost {
		return b.value.Median <= b.limit
	}
	return b.value.Median >= b.limit
}

func (b bar) verdict() string {
	switch {
	case math.IsNaN(b.value.Median):
		return "none  "
	case b.met():
		return "met   "
	}
	return "MISSED"
}

func (b bar) want() string {
	sign := "≥"
	if b.atMost {
		sign = "≤"
	}
	return fmt.Sprintf("%s %s%s", sign, number(b.limit, digitsOf(b.limit)), b.unit)
}

func (b bar) got() string {
	if math.IsNaN(b.value.Median) {
		return "not measured"
	}
	text := number(b.value.Median, b.digits) + b.unit
	if b.value.Low != b.value.High {
		text += fmt.Sprintf(" (%s … %s)", number(b.value.Low, b.digits), number(b.value.High, b.digits))
	}
	return text
}

func digitsOf(v float64) int {
	if v == math.Trunc(v) {
		return 0
	}
	return 1
}

func (s spread) times(by float64) spread { return spread{s.Median * by, s.Low * by, s.High * by} }

// bars are those of the cases that were run.
func (r *report) bars() []bar {
	var all []bar
	sc := scales[r.Scale]
	all = append(all, r.drainBars(sc)...)
	all = append(all, r.latencyBars()...)
	all = append(all, r.producerBars()...)
	all = append(all, r.restBars(sc)...)
	all = append(all, r.confirmBars()...)
	for _, to := range []string{classic, streams} {
		c := consume{to, 2 * time.Millisecond}
		if s := r.find(c.name(), prefetchName); s != nil {
			all = append(all, bar{what: c.name() + ": against claim and mark in turn", unit: "×", limit: 20, digits: 1,
				value: ratio(s, r.find(c.name(), serialName), rate)})
		}
	}
	return all
}

func (r *report) producerBars() (all []bar) {
	add := func(roundTrip time.Duration, who, what string, limit float64) {
		p := producer{8, driverPgx, roundTrip}
		if s := r.find(p.name(), who); s != nil {
			all = append(all, bar{what: p.name() + what + ": of the business row alone", unit: " %", limit: limit,
				value: ratio(s, r.find(p.name(), rowOnly), rate).times(100)})
		}
	}
	add(0, withOurs, "", 66)
	add(0, withNotify, ", NOTIFY", 60)
	add(2*time.Millisecond, withOurs, "", 94)
	return all
}

func (r *report) latencyBars() (all []bar) {
	add := func(l latency, who, what string, f figure, limit float64) {
		if s := r.find(l.name(), who); s != nil {
			all = append(all, bar{what: l.name() + ", " + who + ": " + what, unit: " ms", limit: limit, atMost: true, value: s.of(f), digits: 2})
		}
	}
	for _, to := range []string{classic, streams} {
		quiet, foreign := latency{broker: to, rate: 200}, latency{broker: to, rate: 200, foreign: true}
		add(quiet, millraceName, "p50", p50, 1)
		add(quiet, millraceName, "p99", p99, 3)
		if a, b := r.find(foreign.name(), millraceName), r.find(foreign.name(), quietName); a != nil && b != nil {
			all = append(all, bar{what: foreign.name() + ": p50 against quiet", unit: " %", limit: 120, atMost: true, value: ratio(a, b, p50).times(100)})
			all = append(all, bar{what: foreign.name() + ": p99 against quiet", unit: " %", limit: 120, atMost: true, value: ratio(a, b, p99).times(100)})
		}
		add(quiet, outsideName, "p50", p50, 10)
		add(quiet, outsideName, "p99", p99, 15)
	}
	return all
}

func (r *report) drainBars(sc scale) (all []bar) {
	ran := func(d drain) bool { return r.find(d.name(), millraceName) != nil }
	against := func(d drain, who, what string, limit float64) {
		if s := r.find(d.name(), who); ran(d) && s != nil {
			value := ratio(r.find(d.name(), millraceName), s, rate)
			all = append(all, bar{what: d.name() + ": against " + what, unit: "×", limit: limit, value: value, digits: 1})
		}
	}
	share := func(d drain, limit float64) {
		if s := r.find(d.name(), rawName); ran(d) && s != nil {
			value := ratio(r.find(d.name(), millraceName), s, rate).times(100)
			all = append(all, bar{what: d.name() + ": of the broker alone", unit: " %", limit: limit, value: value})
		}
	}
	small := func(to string) drain { return drain{n: sc.small, broker: to} }
	large := func(to string) drain { return drain{n: sc.large, broker: to} }
	slow := func(to string) drain { return drain{n: sc.small, broker: to, roundTrip: 2e6} }

	against(small(classic), stockName, stockName, 18)
	against(small(classic), tunedName, tunedName, 9)
	share(small(classic), 72)
	share(small(quorum), 72)
	against(small(streams), stockName, stockName, 14)
	against(small(streams), tunedName, tunedName, 8)
	share(small(streams), 40)
	against(large(classic), stockName, stockName, 36)
	against(large(streams), stockName, stockName, 120)
	for _, to := range []string{classic, streams} {
		if ran(small(to)) && ran(large(to)) {
			value := ratio(r.find(large(to).name(), millraceName), r.find(small(to).name(), millraceName), rate).times(100)
			all = append(all, bar{what: large(to).name() + ": of the rate of the short drain", unit: " %", limit: 90, value: value})
		}
	}
	against(slow(classic), stockName, stockName, 100)
	against(slow(streams), stockName, stockName, 100)
	for _, to := range []string{classic, streams} {
		if ran(large(to)) {
			all = append(all, bar{what: large(to).name() + ": memory", unit: " MB", limit: 100, atMost: true,
				value: r.find(large(to).name(), millraceName).of(rssMB)})
		}
	}
	return all
}

func (r *report) restBars(sc scale) (all []bar) {
	most := func(name, what, unit string, limit float64, digits int, f figure) {
		if s := r.find(name, millraceName); s != nil {
			all = append(all, bar{what: name + ": " + what, unit: unit, limit: limit, atMost: true, digits: digits, value: s.of(f)})
		}
	}
	most(backlogName(sc), "memory", " MB", 150, 0, rssMB)
	most(idleCase, "CPU", " % of a core", 1, 2, extra("cpu"))
	most(idleCase, "statements", "/s", 4, 1, extra("queries"))
	most(idleCase, "transaction ids beside the lease's", "", 0, 0, idleOther)
	return all
}
