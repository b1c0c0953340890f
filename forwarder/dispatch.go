package forwarder

import (
	"github.com/millrace-go/millrace/outbox"
)

// next takes the next batch out, nil if nothing may go. A batch is in order of position. It holds one
// message of a key, or, for a publisher that keeps keys in order, several of which no other batch has
// any.
func (w *window) next(maxRows, maxBytes int) []*item {
	w.batch++
	var batch []*item
	for bytes := 0; ; {
		it := w.pop()
		if it == nil {
			break
		}
		if len(batch) > 0 && (it.alone() || len(batch) >= maxRows || bytes+it.row.Size > maxBytes) {
			w.push(it)
			break
		}
		w.take(it)
		batch = append(batch, it)
		bytes += it.row.Size
		if it.alone() {
			break
		}
		if it.key != nil {
			w.wake(it.key)
		}
	}
	return batch
}

// probe takes out one item, the next one behind position after, or the lowest if there is none: when a
// destination does not answer, the fault may be the message's that is always asked first.
func (w *window) probe(after int64) []*item {
	w.batch++
	var passed []*item
	found := w.pop()
	for found != nil && found.row.Pos <= after {
		passed = append(passed, found)
		found = w.pop()
	}
	if found == nil && len(passed) > 0 {
		found, passed = passed[0], passed[1:]
	}
	for _, it := range passed {
		w.push(it)
	}
	if found == nil {
		return nil
	}
	w.take(found)
	return []*item{found}
}

// take marks an item as being with the publisher.
func (w *window) take(it *item) {
	it.state = flying
	it.lane.pending++
	w.flying++
	if it.key != nil {
		it.key.flying++
		it.key.batch = w.batch
	}
	if it.careful() {
		w.fragile = it
	}
}

// land ends the publish of an item, whatever came of it. False: the lane is lost, the answer counts
// for nothing any more.
func (w *window) land(it *item) bool {
	w.flying--
	if w.fragile == it {
		w.fragile = nil
	}
	return w.known[it.row.Pos] == it
}

// confirm notes that the broker has the message: it is never published again, and the next one of its
// key may go. If it had stopped its key, the stop is lifted before the row is deleted: the other way
// round, a crash in between would leave a stop that nobody lifts.
func (w *window) confirm(it *item) {
	if !w.land(it) {
		return
	}
	if stop, stopped := it.lane.stops[it.row.Key]; it.row.Key != "" && stopped && stop == it.row.Pos {
		it.state = recording
		w.desk = append(w.desk, task{kind: taskLift, item: it})
		return
	}
	w.settleLater(it)
}

func (w *window) settleLater(it *item) {
	if it.key != nil {
		w.dequeue(it)
	}
	it.state = confirmed
	w.settling = append(w.settling, it)
}

// refuse notes a refusal that is to be recorded. Until then the key waits.
func (w *window) refuse(it *item, kind taskKind, reason, text string) {
	if !w.land(it) {
		return
	}
	it.state, it.reason, it.text = recording, reason, text
	w.desk = append(w.desk, task{kind: kind, item: it})
}

// again puts an item back in its place: it is published once more, in order.
func (w *window) again(it *item) {
	if !w.land(it) {
		return
	}
	it.state = queued
	it.lane.pending--
	if it.key != nil {
		it.key.flying--
	}
	switch {
	case it.lane.leaving:
		w.remove(it)
	case it.key != nil:
		w.wake(it.key)
	default:
		w.push(it)
	}
}

// unresolved counts what the broker may have and the store does not know of.
func (w *window) unresolved() int {
	n := 0
	for _, l := range w.lanes {
		n += l.pending
	}
	return n
}

// toSettle takes up to limit confirmed items out, with the grants of their lanes.
func (w *window) toSettle(limit int) ([]*item, []outbox.Grant, []outbox.Ref) {
	n := min(limit, len(w.settling))
	items := w.settling[:n:n]
	w.settling = w.settling[n:]
	var kept []*item
	var grants []outbox.Grant
	var refs []outbox.Ref
	granted := map[int]bool{}
	for _, it := range items {
		if w.known[it.row.Pos] != it {
			continue // its lane is lost
		}
		kept = append(kept, it)
		refs = append(refs, it.row.Ref)
		if !granted[it.row.Lane] {
			granted[it.row.Lane] = true
			grants = append(grants, it.lane.grant)
		}
	}
	return kept, grants, refs
}
