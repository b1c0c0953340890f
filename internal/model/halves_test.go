package model_test

import (
	"fmt"
	"sync"
	"sync/atomic"
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
	for n := range max(0, pick("deals", 16)-6) {
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

// tardiness is how late something comes: mostly soon, at times long after the last moment.
func (w *world) tardiness(parts ...any) time.Duration {
	limit := time.Second
	switch n := w.fate(10, append(parts, "tardy")...); {
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

// happens is called when a local transaction commits, wherever that is. The caller holds the lock.
func (w *world) happens(d *deal) {
	id := d.id
	if d.done {
		w.wrong("%s: its local transaction committed twice", id)
	}
	d.done, d.since = true, time.Now()
	saw("done")
	w.notes(d, "its local transaction commits")
	if d.refused {
		w.wrong("%s: the business did what it had refused", id) // the model's own fault
	}
	switch {
	case d.gone && d.reason == byChecker:
		d.lost = true
	case d.state != half.Ended:
	case d.way == witnessed:
		w.wrong("%s: its local transaction committed, and the message had ended (%s)", id, d.reason)
	case d.since.Sub(d.prepared) < w.halves.maxAge:
		w.wrong("%s: its local transaction committed in time, and the message had ended (%s)", id, d.reason)
	default:
		saw("done after the end")
	}
}

// barrier is called for each witness and tombstone that is committed or purged.
func (w *world) barrier(_ *conn, table, id string, before, after record) {
	w.mu.Lock()
	defer w.mu.Unlock()
	d := w.deal(id)
	switch {
	case after == nil:
		saw("purged witness or tombstone")
		if age := w.shop.now() - before["created_at"].(int64); age < w.halves.retention.Microseconds() {
			w.wrong("%s: its %v was purged after %d ms", id, before["kind"], age/1000)
		}
	case before != nil:
		w.wrong("%s: %s was written over", id, table)
	case after["kind"] == "T":
		d.buried = true
		saw("tombstone")
		w.notes(d, "its tombstone stands")
	}
}

// turned is called when a half message has come to another state, in the transaction that wrote it.
func (w *world) turned(c *conn, _, id string, before, after record) {
	w.mu.Lock()
	defer w.mu.Unlock()
	d := w.deal(id)
	if after == nil {
		w.forgotten(d, before)
		return
	}
	was, is, why := half.State(""), half.State(after["state"].(string)), after["reason"].(string)
	if before != nil {
		was = half.State(before["state"].(string))
	}
	given := 0
	for _, r := range c.rows {
		if r.entry.ID == id {
			given++
		}
	}
	if is != was {
		w.notes(d, "it is %s (%s)", is, why)
	}
	d.state, d.reason, d.prepared = is, why, time.UnixMicro(after["prepared_at"].(int64))
	switch {
	case was == half.Committed, was == half.Ended && before["reason"] != byChecker:
		if is != was {
			w.wrong("%s was %s, for good, and is %s (%s)", id, was, is, why)
		}
	case is == half.Committed:
		w.letGo(d, given)
		if was == half.Ended {
			saw("revived")
		}
		given--
	case is == half.Ended && (was != is || before["reason"] != why):
		w.ended(d, why, after)
	case is == half.Parked && was == half.Prepared:
		d.parked++
		saw("parked")
		if n := after["checks"].(int64); n < int64(w.halves.maxChecks) {
			w.wrong("%s was parked after %d checks", id, n)
		}
	case is == half.Prepared && was == half.Parked:
		saw("resumed")
	case is != half.Prepared && is != was:
		w.wrong("%s was %q and is %s", id, was, is)
	}
	if given != 0 {
		w.wrong("%s became %s, and was given to the outbox %d times more than that", id, is, given)
	}
}

// letGo looks whether a message is rightly given to the outbox. The caller holds the lock.
func (w *world) letGo(d *deal, given int) {
	saw("let go")
	if given != 1 {
		w.wrong("%s was let go, and given to the outbox %d times", d.id, given)
	}
	if !d.done {
		w.wrong("%s was let go, and its local transaction has not committed", d.id)
	}
	if d.way != witnessed && !d.let && !d.calledCommitted {
		w.wrong("%s was let go, and nobody has said that it committed", d.id)
	}
}

// The reasons of ended messages, as the package stores them.
const (
	byProducer  = "rolled back"
	byTombstone = "rolled back: tombstone"
	byChecker   = "rolled back: checker"
)

// ended looks whether a message may be dropped. The caller holds the lock.
func (w *world) ended(d *deal, why string, row record) {
	saw("ended: " + why)
	inTime := d.done && d.since.Sub(d.prepared) < w.halves.maxAge
	if d.done && (d.way == witnessed || inTime || why != byChecker) {
		w.wrong("%s was dropped (%s), and its local transaction has committed", d.id, why)
	}
	switch why {
	case byProducer:
		if !d.dropped && !d.refused {
			w.wrong("%s was rolled back, and nobody who knew has said so", d.id)
		}
	case byTombstone:
		if !d.buried {
			w.wrong("%s was dropped for its tombstone, and there has been none", d.id)
		}
	case byChecker:
		if age := w.business.now() - d.prepared.UnixMicro(); age < w.halves.maxAge.Microseconds() {
			w.wrong("%s was ended for its checker's word after %d ms", d.id, age/1000)
		}
		if d.way == witnessed || !d.calledRolledBack {
			w.wrong("%s was ended for its checker, and nobody has called it rolled back", d.id)
		}
		if len(row["payload"].([]byte)) == 0 || row["metadata"] == "{}" {
			w.wrong("%s was ended for its checker, and its content is lost", d.id)
		}
	default:
		w.wrong("%s ended for the reason %q", d.id, why)
	}
}

// forgotten looks whether a message may be purged. The caller holds the lock.
func (w *world) forgotten(d *deal, row record) {
	saw("purged half message")
	w.notes(d, "it is forgotten")
	if row["decided_at"] == nil || w.business.now()-row["decided_at"].(int64) < w.halves.retention.Microseconds() {
		w.wrong("%s is %s since %v, and was purged", d.id, row["state"], row["decided_at"])
	}
	if row["reason"] == byChecker && d.done {
		d.lost = true // too late, and nobody looked for as long as it was kept
	}
	d.state, d.gone = "", true
}

// wasForgotten reports whether a message has been here. To prepare it again is to prepare another one, which is for
// producers to avoid, who stand still for longer than the retention.
func (w *world) wasForgotten(id string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.deal(id).gone
}

// lookAtHalves checks what became of the half messages.
func (w *world) lookAtHalves(wrong func(string, ...any)) {
	for _, d := range w.halves.deals {
		sent := w.sequence[d.id] > 0
		switch {
		case sent && !d.done:
			wrong("%s was sent, and its local transaction has not committed", d.id)
		case d.done && !sent && !d.lost:
			wrong("%s is %q (%s): its local transaction has committed, and it was not sent", d.id, d.state, d.reason)
		case w.quiet && d.done == d.ends:
			wrong("nothing went wrong, and the local transaction of %s: done is %v", d.id, d.done)
		case w.quiet && (d.parked > 0 || d.buried && !d.ends):
			wrong("nothing went wrong, and %s was parked %d times, buried: %v", d.id, d.parked, d.buried)
		}
		if n := w.halves.told[d.id]; n > d.parked {
			wrong("%s was parked %d times, and told of as parked %d times", d.id, d.parked, n)
		}
	}
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

var seen sync.Map // how often something happened, in all worlds

// saw counts what a model that has none of it would prove nothing about.
func saw(what string) {
	n, _ := seen.LoadOrStore(what, new(atomic.Int64))
	n.(*atomic.Int64).Add(1)
}
