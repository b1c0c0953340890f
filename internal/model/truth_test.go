package model_test

import (
	"time"

	"github.com/millrace-go/millrace/outbox/half"
)

// The reasons of ended messages, as the package stores them.
const (
	byProducer  = "rolled back"
	byTombstone = "rolled back: tombstone"
	byChecker   = "rolled back: checker"
)

// happens is called when a local transaction commits, wherever that is. The caller holds the lock.
func (w *world) happens(d *deal) {
	id := d.id
	if d.done {
		w.wrong("%s: its local transaction committed twice", id)
	}
	d.done, d.since = true, time.Now()
	saw(sawDone)
	w.notes(d, "its local transaction commits")
	if d.way == witnessed && d.buried {
		w.wrong("%s: its local transaction committed, and its tombstone stood", id)
	}
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
		saw(sawAfterEnd)
	}
}

// barrier is called for each witness and tombstone that is committed or purged.
func (w *world) barrier(_ *conn, table, id string, before, after record) {
	w.mu.Lock()
	defer w.mu.Unlock()
	d := w.deal(id)
	switch {
	case after == nil:
		saw(sawPurged)
		if age := w.shop.now() - before["created_at"].(int64); age < w.halves.retention.Microseconds() {
			w.wrong("%s: its %v was purged after %d ms", id, before["kind"], age/1000)
		}
	case before != nil:
		w.wrong("%s: %s was written over", id, table)
	case after["kind"] == "W":
		if late := after["created_at"].(int64) - d.prepared.Add(w.halves.maxAge).UnixMicro(); late >= 0 {
			w.wrong("%s: its witness was written %d ms after the last moment", id, late/1000)
		}
	case after["kind"] == "T":
		d.buried = true
		saw(sawTombstone)
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
			if string(r.entry.Body) != "payload of "+id || r.entry.Meta["kind"] != "half" {
				w.wrong("%s was given to the outbox with another content", id)
			}
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
			saw(sawRevived)
		}
		given--
	case is == half.Ended && (was != is || before["reason"] != why):
		w.ended(d, why, after)
	case is == half.Parked && was == half.Prepared:
		d.parked++
		saw(sawParked)
		if n := after["checks"].(int64); n < int64(w.halves.maxChecks) {
			w.wrong("%s was parked after %d checks", id, n)
		}
	case is == half.Prepared && was == half.Parked:
		saw(sawResumed)
	case is != half.Prepared && is != was:
		w.wrong("%s was %q and is %s", id, was, is)
	}
	if given != 0 {
		w.wrong("%s became %s, and was given to the outbox %d times more than that", id, is, given)
	}
}

// letGo looks whether a message is rightly given to the outbox. The caller holds the lock.
func (w *world) letGo(d *deal, given int) {
	saw(sawLetGo)
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

// ended looks whether a message may be dropped. The caller holds the lock.
func (w *world) ended(d *deal, why string, row record) {
	saw(sawEnded + why)
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
	saw(sawForgotten)
	w.notes(d, "it is forgotten")
	if row["decided_at"] == nil || w.business.now()-row["decided_at"].(int64) < w.halves.retention.Microseconds() {
		w.wrong("%s is %s since %v, and was purged", d.id, row["state"], row["decided_at"])
	}
	if row["reason"] == byChecker && d.done {
		d.lost = true // too late, and nobody looked for as long as it was kept
	}
	d.state, d.gone = "", true
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
