package forwarder

import (
	"maps"
	"slices"

	"github.com/millrace-go/millrace/outbox"
)

// beginRead says what to ask the store for, and false if nothing can be taken up now.
//
// Excluded is everything that is in the window at this moment. What is added or leaves before endRead
// is remembered: a read returns what was there when it began, also a row that was settled since.
func (w *window) beginRead(batchRows, batchBytes int, topics []string) (outbox.Read, bool) {
	rows := min(batchRows, w.maxRows-len(w.known))
	bytes := min(batchBytes, w.maxBytes-w.bytes)
	// Reading in crumbs because a few rows left a full window costs more than waiting for a few more.
	if rows < min(batchRows, max(1, w.maxRows/8)) || bytes < min(batchBytes, w.maxBytes/8) && len(w.known) > 0 {
		w.hungry = true
		return outbox.Read{}, false
	}
	q := outbox.Read{
		Lanes: []int{}, Topics: topics, Exclude: make([]int64, 0, len(w.known)), BusyKeys: []string{},
		MaxRows: rows, MaxBytes: bytes,
	}
	w.reading = map[int]*lane{}
	for number, l := range w.lanes {
		if !l.leaving {
			w.reading[number] = l
			q.Lanes = append(q.Lanes, number)
		}
	}
	if len(q.Lanes) == 0 {
		w.reading = nil
		return q, false
	}
	slices.Sort(q.Lanes)
	w.erased = map[int64]struct{}{}
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
	added, bytes := 0, 0
	for _, row := range rows {
		bytes += row.Size
		if w.add(row) {
			added++
		}
	}
	full := len(rows) >= q.MaxRows || len(rows) > 0 && bytes >= q.MaxBytes/2
	touched := map[int]bool{}
	for _, row := range rows {
		touched[row.Lane] = true
	}
	for number, l := range w.reading {
		if touched[number] || !full {
			l.seen = true
			w.soothe(l)
		}
	}
	w.reading, w.erased = nil, nil
	w.hungry = full
	return added
}

// abandonRead ends a read that brought no answer.
func (w *window) abandonRead() { w.reading, w.erased = nil, nil }
