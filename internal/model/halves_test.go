package model_test

import (
	"fmt"
	"time"

	"github.com/millrace-go/millrace/outbox/half"
)

// How a deal is checked back: by the witness of its local transaction, by a function, over HTTP.
const (
	witnessed = iota
	asked
	called
)

// deal is a half message with its local transaction, as the world knows the truth about it. Guarded by world.mu.
type deal struct {
	id, topic string
	way       int  // to check it back
	careful   bool // the business says rolled back only of what it has refused; else of all that it does not find
	ends      bool // the business will change its mind

	tries   int  // of the producer
	running int  // of them
	closed  bool // there will be no more tries
	coming  int  // what may still be done in the business, of what was given up

	done    bool      // the local transaction has committed
	since   time.Time // it is done
	refused bool      // it can never be done any more, says the business
	buried  bool      // a tombstone stands, or has stood

	let, dropped     bool // the producer, or somebody by hand, said so
	calledCommitted  bool // so was answered
	calledRolledBack bool

	state    half.State
	reason   string
	prepared time.Time
	parked   int  // times
	gone     bool // it was purged
	lost     bool // the business broke its promise, and nobody looked as long as it was kept
	history  []string
}

// halves is what the half messages of a world need.
type halves struct {
	deals      []*deal
	byID       map[string]*deal
	replicas   int // that check back
	maxAge     time.Duration
	retention  time.Duration
	firstCheck time.Duration
	checkEvery time.Duration
	timeout    time.Duration
	maxChecks  int
	batch      int
	told       map[string]int // OnParked, by id
}

// chooseHalves draws how half messages are kept, and what goes wrong with them alone.
func (w *world) chooseHalves(pick func(what string, most int) int, some func(kinds ...int) bool) {
	c, h := &w.chaos, &w.halves
	if some(6) {
		c.callFails, c.callLost, c.callLate, c.nonsense = pick("call fails", 300), pick("call lost", 300), pick("call late", 400), pick("nonsense", 700)
	}
	if some(1, 6) {
		c.dawdles = pick("dawdles", 300)
	}
	if some(1) {
		c.freezes = pick("freezes", 100)
	}
	if some(2) {
		c.dbLate = pick("db late", 300)
		for _, name := range []string{"business", "shop"} {
			if pick(name+" away", 1) == 0 {
				from := time.Duration(pick(name+" away from", int(w.lasts/time.Second))) * time.Second
				c.away[name] = [2]time.Duration{from, from + time.Duration(pick(name+" away for", 40))*time.Second}
			}
		}
	}
	h.replicas = 1 + pick("replicas that check back", 2)
	h.maxAge = time.Duration(5+pick("max age", 25)) * time.Second
	h.retention = 4*h.maxAge + time.Duration(pick("retention", 60))*time.Second
	h.firstCheck = time.Duration(100+pick("first check", 6000)) * time.Millisecond
	h.checkEvery = time.Duration(500+pick("check every", 5000)) * time.Millisecond
	h.timeout = time.Duration(500+pick("check timeout", 5000)) * time.Millisecond
	h.maxChecks, h.batch = 2+pick("max checks", 5), 1+pick("batch", 15)
	if w.quiet {
		h.firstCheck = time.Minute
	}
	if !w.quiet && pick("skewed", 2) == 0 { // by less than the maximum age
		w.shop.skew = time.Duration(pick("skew", 2*int(h.maxAge/time.Millisecond)-2))*time.Millisecond - h.maxAge + time.Millisecond
	}
	h.byID, h.told = map[string]*deal{}, map[string]int{}
	for n := range max(0, pick("deals", 20)-6) {
		d := &deal{id: fmt.Sprint("h", n+1), topic: orders, way: pick(fmt.Sprint("way ", n), 2)}
		if pick(fmt.Sprint("topic ", n), 2) == 0 {
			d.topic = plain
		}
		d.careful, d.ends = pick(fmt.Sprint("careful ", n), 1) == 0, pick(fmt.Sprint("ends ", n), 4) == 0
		h.deals, h.byID[d.id] = append(h.deals, d), d
	}
}

// away reports whether a database cannot be reached.
func (w *world) away(name string) bool {
	at, since := w.chaos.away[name], time.Since(w.began)
	return !w.healed() && since >= at[0] && since < at[1]
}

// later has something done when whoever wanted it has given up. The world does not rest before.
func (w *world) later(wait time.Duration, do func()) {
	w.mu.Lock()
	w.pending++
	w.mu.Unlock()
	time.AfterFunc(wait, func() {
		do()
		w.mu.Lock()
		w.pending--
		w.mu.Unlock()
	})
}

// tardiness is how late something comes: soon, in time, about at the last moment, or long after it.
func (w *world) tardiness(parts ...any) time.Duration {
	limit := time.Second
	switch n := w.fate(10, append(parts, "tardy")...); {
	case n < 2:
		return w.halves.maxAge - time.Second + time.Duration(w.fate(2000, append(parts, "how close")...))*time.Millisecond
	case n > 8:
		limit = w.halves.retention + 2*w.halves.maxAge
	case n > 6:
		limit = 3 * w.halves.maxAge
	case n > 3:
		limit = w.halves.maxAge
	}
	return time.Duration(w.fate(int(limit/time.Millisecond), append(parts, "how tardy")...)) * time.Millisecond
}

// wrong notes what must not be. The caller holds the lock.
func (w *world) wrong(format string, args ...any) {
	w.wrongs = append(w.wrongs, fmt.Sprintf(format, args...))
}

// deal finds a deal; the caller holds the lock.
func (w *world) deal(id string) *deal {
	d := w.halves.byID[id]
	if d == nil {
		w.wrong("nobody has prepared %s", id)
		d = &deal{id: id}
	}
	return d
}

// notes adds to a deal's history, which is shown if something was wrong. The caller holds the lock.
func (w *world) notes(d *deal, format string, args ...any) {
	d.history = append(d.history, fmt.Sprintf("%9.3f s  %s: ", time.Since(w.began).Seconds(), d.id)+fmt.Sprintf(format, args...))
}

// wasForgotten reports whether a message has been here. To prepare it again is to prepare another one, which is for
// producers to avoid, who stand still for longer than the retention.
func (w *world) wasForgotten(id string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.deal(id).gone
}

// undecided are the half messages that are not at an end.
func (w *world) undecided() (all []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, d := range w.halves.deals {
		if d.state == half.Prepared || d.state == half.Parked || d.state == half.Ended && d.reason == byChecker && d.done {
			all = append(all, fmt.Sprint(d.id, " is ", d.state))
		}
	}
	if w.pending > 0 {
		all = append(all, fmt.Sprint(w.pending, " things are still to be done"))
	}
	return all
}

// tellHalves shows what happened to each.
func (w *world) tellHalves() {
	for _, d := range w.halves.deals {
		for _, text := range d.history {
			w.Log(text)
		}
	}
}
