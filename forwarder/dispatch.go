package forwarder

// next takes the next batch out, nil if nothing may go. A batch is in order of position. It holds one
// message of a key, or, for a publisher that keeps keys in order, several of which no other batch has
// any. Together puts those that otherwise go alone into one batch, unless they are to be handled with care.
func (w *window) next(maxRows, maxBytes int, together bool) []*item {
	w.batch++
	var batch []*item
	for bytes := 0; ; {
		it := w.pop(together)
		if it == nil {
			break
		}
		alone := it.alone() && (!together || it.careful() || it.row.Err != nil)
		if len(batch) > 0 && (alone || len(batch) >= maxRows || bytes+it.row.Size > maxBytes) {
			w.push(it)
			break
		}
		w.take(it)
		batch = append(batch, it)
		bytes += it.row.Size
		if alone {
			break
		}
		if it.key != nil {
			w.wake(it.key)
		}
	}
	return batch
}

// sample takes a batch of what comes behind position after, or of the lowest if there is nothing: when a
// destination fails, the fault may be that of the messages that are always asked first.
func (w *window) sample(after int64, maxRows, maxBytes int) []*item {
	var passed []*item
	it := w.pop(true)
	for it != nil && it.row.Pos <= after {
		passed = append(passed, it)
		it = w.pop(true)
	}
	var batch []*item
	if it != nil {
		w.push(it)
		batch = w.next(maxRows, maxBytes, true)
	}
	for _, it := range passed {
		w.push(it)
	}
	if batch == nil && len(passed) > 0 {
		batch = w.next(maxRows, maxBytes, true)
	}
	return batch
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
		w.fragile.item = it
	}
	if it.alone() {
		it.lone = true
		w.out++
	}
}

// land ends the publish of an item, whatever came of it. False: the lane is lost, the answer counts
// for nothing any more.
func (w *window) land(it *item) bool {
	w.flying--
	if it.lone {
		it.lone = false
		w.out--
	}
	return w.known[it.row.Pos] == it
}

// safe notes that a careful item has not killed the process. One that was delivered or refused is not safe
// before the store knows of it: the successor would think that it was this one.
func (w *window) safe(it *item) {
	if w.fragile.item == it {
		w.fragile.item = nil
	}
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

// skip ends an item that was taken out and is not to be published: somebody cancels it, or may be about to.
// It is not read again before the next look-out, because that may go on for a while.
func (w *window) skip(it *item) {
	if !w.land(it) {
		return
	}
	if it.key != nil {
		w.dequeue(it)
	}
	w.safe(it)
	it.lane.pending--
	it.state = resting
	w.rest = append(w.rest, it)
	if it.lane.leaving {
		w.remove(it)
	}
}

// again puts an item back in its place: it is published once more, in order.
func (w *window) again(it *item) {
	if !w.land(it) {
		return
	}
	w.safe(it)
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

// toSettle takes up to limit confirmed items out, without those of lost lanes.
func (w *window) toSettle(limit int) (items []*item) {
	n := min(limit, len(w.settling))
	for _, it := range w.settling[:n] {
		if w.known[it.row.Pos] == it {
			items = append(items, it)
		}
	}
	w.settling = w.settling[n:]
	return items
}
