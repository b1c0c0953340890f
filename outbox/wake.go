package outbox

import (
	"log/slog"
	"sync"
)

// Wake tells one subscriber that messages were committed, by this process or, with a Waker, by another.
// Signals are merged: one that comes while another waits to be taken adds its lanes to it. None of this
// process is lost, but a signal may come without rows to be seen, when a transaction's outcome is unknown.
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
// from now on, right after COMMIT was answered; and, with Config.Waker, of those of other processes. The
// function ends it, and returns when the last one has stopped listening.
func (b *Box) Subscribe() (*Wake, func()) { return b.wakes.subscribe() }

// wakes are the subscribers of a Box.
type wakes struct {
	others *others // nil without a Waker

	mu  sync.Mutex
	all map[*Wake]struct{}
}

// connect lets the subscribers hear of other processes, and these of what is committed here.
func (ws *wakes) connect(waker Waker, log *slog.Logger) {
	if waker != nil {
		ws.others = newOthers(waker, log, ws.local)
	}
}

func (ws *wakes) subscribe() (*Wake, func()) {
	w := &Wake{c: make(chan struct{}, 1)}
	ws.mu.Lock()
	if ws.all == nil {
		ws.all = make(map[*Wake]struct{})
	}
	ws.all[w] = struct{}{}
	ws.mu.Unlock()
	stop := func() {}
	if ws.others != nil {
		stop = ws.others.listen()
	}
	return w, sync.OnceFunc(func() {
		ws.mu.Lock()
		delete(ws.all, w)
		ws.mu.Unlock()
		stop()
	})
}

// signal tells everybody, here and elsewhere, that lanes have new messages.
func (ws *wakes) signal(lanes uint64) {
	if lanes == 0 {
		return
	}
	ws.local(lanes)
	if ws.others != nil {
		ws.others.tell(lanes)
	}
}

// local tells the subscribers of this Box.
func (ws *wakes) local(lanes uint64) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for w := range ws.all {
		w.signal(lanes)
	}
}
