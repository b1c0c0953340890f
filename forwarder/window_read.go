package forwarder

import (
	"maps"
	"slices"
	"time"

	"github.com/millrace-go/millrace/outbox"
)

// beginRead says what to ask the store for, and false if nothing can be taken up now. Some lanes are enough
// unless a limit kept rows out of any.
//
// Excluded is everything that is in the window at this moment. What is added or leaves before endRead
// is remembered: a read returns what was there when it began, also a row that was settled since.
func (w *window) beginRead(batchRows, batchBytes int, topics []string, lanes uint64) (outbox.Read, bool) {
	rows := min(batchRows, w.maxRows-len(w.known))
	bytes := min(batchBytes, w.maxBytes-w.bytes)
	// Reading in crumbs because a few rows left a full window costs more than waiting for a few more.
	if rows < min(batchRows, max(1, w.maxRows/8)) || bytes < min(batchBytes, w.maxBytes/8) && len(w.known) > 0 {
		w.hungry = true
		return outbox.Read{}, false
	}
	if w.hungry {
		lanes = everyLane
	}
	w.partial = lanes != everyLane
	q := outbox.Read{
		Lanes: []int{}, Topics: topics, Exclude: make([]int64, 0, len(w.known)), BusyKeys: []string{},
		MaxRows: rows, MaxBytes: bytes,
	}
	w.reading = map[int]*lane{}
	for number, l := range w.lanes {
		if !l.leaving && lanes&(1<<number) != 0 {
			w.reading[number] = l
			q.Lanes = append(q.Lanes, number)
		}
	}
	if len(q.Lanes) == 0 {
		w.reading = nil
		return q, false
	}
	slices.Sort(q.Lanes)
	w.erased, w.barred = map[int64]struct{}{}, map[string]struct{}{}
	for pos := range maps.Keys(w.known) {
		q.Exclude = append(q.Exclude, pos)
	}
	for name, key := range w.keys {
		if len(key.items) >= w.hotKey {
			q.BusyKeys = append(q.BusyKeys, name)
		}
	}
	return q, true
}

// endRead takes the answer up and returns the number of new rows. Hungry says afterwards whether more
// may be there that a limit kept out.
func (w *window) endRead(q outbox.Read, rows []outbox.Row) int {
	added, bytes, touched, now := 0, 0, uint64(0), time.Now()
	for i := range rows {
		bytes += rows[i].Size
		touched |= 1 << rows[i].Lane
		if w.add(&rows[i], now) {
			added++
		}
	}
	full := len(rows) >= q.MaxRows || len(rows) > 0 && bytes >= q.MaxBytes/2
	for number, l := range w.reading {
		if touched&(1<<number) != 0 || !full {
			l.seen = true
			w.soothe(l)
		}
	}
	w.hungry = full || (w.partial || len(w.barred) > 0) && w.hungry
	w.abandonRead()
	return added
}

// beginRound begins a look-out: what is here by now was read before the store is asked what there is.
func (w *window) beginRound() (round int) {
	w.round++
	return w.round
}

// endRound takes up which topics have something that may go. What waits here of another one, since before
// the round began, may not go any more: its topic was paused, or the row is gone. It is dropped. A lane of
// which there is nothing to read is through its first read.
func (w *window) endRound(round int, topics []string) (dropped []*item) {
	for _, it := range w.rest {
		w.remove(it)
		w.hungry = true
	}
	w.rest = nil
	for _, it := range w.known {
		if it.state == queued && it.round < round && !slices.Contains(topics, it.row.Topic) {
			dropped = append(dropped, it)
		}
	}
	for _, it := range dropped {
		w.remove(it)
	}
	for _, l := range w.lanes {
		if len(topics) == 0 && l.round < round && !l.seen {
			l.seen = true
			w.soothe(l)
		}
	}
	return dropped
}

// abandonRead ends a read that brought no answer.
func (w *window) abandonRead() { w.reading, w.erased, w.barred = nil, nil, nil }
