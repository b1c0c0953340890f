package forwarder

import stdheap "container/heap"

// heap holds what may be handed out, lowest position first. Entries may have become stale: they are
// dropped when they come up.
type heap struct{ items itemHeap }

func (w *window) push(it *item) {
	if !it.heaped {
		it.heaped = true
		stdheap.Push(&w.ready.items, it)
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

// pop returns the lowest item that may go out, nil if there is none.
func (w *window) pop() *item {
	for len(w.ready.items) > 0 {
		it := stdheap.Pop(&w.ready.items).(*item)
		it.heaped = false
		switch {
		case it.state != queued, it.lane.lost, it.lane.leaving, w.known[it.row.Pos] != it:
		case it.key != nil && (!w.free(it.key) || it.key.items[it.key.flying] != it):
		default:
			return it
		}
	}
	return nil
}

type itemHeap []*item

func (h itemHeap) Len() int           { return len(h) }
func (h itemHeap) Less(i, j int) bool { return h[i].row.Pos < h[j].row.Pos }
func (h itemHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *itemHeap) Push(x any)        { *h = append(*h, x.(*item)) }
func (h *itemHeap) Pop() any {
	old := *h
	it := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return it
}
