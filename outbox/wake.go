package outbox

import "sync"

// Wake tells one subscriber that messages were committed by this process. Signals are merged: one that
// comes while another waits to be taken adds its lanes to it. None is lost, but a signal may come
// without rows to be seen, when a transaction's outcome is unknown.
type Wake struct {
	c chan struct{}

	mu    sync.Mutex
	lanes uint64
}

// C has something to receive when lanes wait to be taken. Take them after receiving, and before
// reading the outbox.
func (w *Wake) C() <-chan struct{} { return w.c }

// Take returns the lanes signalled since the last Take, one bit each, and forgets them.
func (w *Wake) Take() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	lanes := w.lanes
	w.lanes = 0
	return lanes
}

func (w *Wake) signal(lanes uint64) {
	w.mu.Lock()
	w.lanes |= lanes
	w.mu.Unlock()
	select {
	case w.c <- struct{}{}:
	default: // the slot is taken: the lanes are in the mask
	}
}

// Subscribe returns a Wake that hears of every transaction on this Box that committed, or may have,
// from now on, right after COMMIT was answered. The function ends it.
func (b *Box) Subscribe() (*Wake, func()) {
	w := &Wake{c: make(chan struct{}, 1)}
	b.wakes.mu.Lock()
	defer b.wakes.mu.Unlock()
	if b.wakes.all == nil {
		b.wakes.all = make(map[*Wake]struct{})
	}
	b.wakes.all[w] = struct{}{}
	return w, func() {
		b.wakes.mu.Lock()
		defer b.wakes.mu.Unlock()
		delete(b.wakes.all, w)
	}
}

// wakes are the subscribers of a Box.
type wakes struct {
	mu  sync.Mutex
	all map[*Wake]struct{}
}

func (ws *wakes) signal(lanes uint64) {
	if lanes == 0 {
		return
	}
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for w := range ws.all {
		w.signal(lanes)
	}
}
