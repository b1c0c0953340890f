package forwarder

import stdheap "container/heap"

// heap holds what may be handed out, lowest position first. Entries may have become stale: they are
// dropped when they come up.
type heap []*item

func (w *window) push(it *item) {
	if it.heaped {
		return
	}
	it.heaped = true
	if it.alone() {
		stdheap.Push(&w.single, it)
	} else {
		stdheap.Push(&w.ready, it)
	}
}

// wake offers the next item of a key, if the key is free.
func (w *window) wake(q *queue) {
	if q.flying < len(q.items) && w.free(q) && !q.lane.lost {
		w.push(q.items[q.flying])
	}
}

// free reports whether another item of the key may go out: none is out, or all that are go with the
// batch being built, to a publisher that keeps them in order.
func (w *window) free(q *queue) bool {
	return q.flying == 0 || w.ordered && q.batch == w.batch && q.items[0].state == flying
}

// pop returns the lowest item that may go out, nil if there is none. Of those that go alone only so many
// are out at a time, so that many failing messages leave room for the others; together lifts that. While
// a careful item is out, no other one may go.
func (w *window) pop(together bool) *item {
	for {
		from := &w.ready
		if w.singleOpen(together) && (len(w.ready) == 0 || w.single[0].row.Pos < w.ready[0].row.Pos) {
			from = &w.single
		}
		if len(*from) == 0 {
			return nil
		}
		it := stdheap.Pop(from).(*item)
		it.heaped = false
		switch {
		case it.state != queued, it.lane.lost, it.lane.leaving, w.known[it.row.Pos] != it:
		case it.key != nil && (!w.free(it.key) || it.key.items[it.key.flying] != it):
		default:
			return it
		}
	}
}

// singleOpen reports whether an item that goes alone may be taken.
func (w *window) singleOpen(together bool) bool {
	return len(w.single) > 0 && (together || w.out < w.singles) && (w.fragile.item == nil || !w.single[0].careful())
}

func (h heap) Len() int           { return len(h) }
func (h heap) Less(i, j int) bool { return h[i].row.Pos < h[j].row.Pos }
func (h heap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *heap) Push(x any)        { *h = append(*h, x.(*item)) }
func (h *heap) Pop() any {
	old := *h
	it := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return it
}
