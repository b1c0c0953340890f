package outbox

import (
	"slices"
	"sync"
	"time"
)

const (
	// boundPause is the time between two steps of the proof of a bound.
	boundPause = time.Second
	// boundTrust is how long a bound is trusted. Then it is proved from the bottom again, which finds what
	// somebody else made ready below it.
	boundTrust = 10 * time.Second
	// prepared stands for all prepared transactions among the writers.
	prepared = "prepared"
)

// bound is a position up to which no row is ready, and none can turn up: reads begin above it, instead
// of walking each time over the entries of rows that were deleted but not vacuumed, because some old
// transaction might still see them.
//
// What is proved is about rows that are ready. So whoever makes rows ready lowers the bound before, and
// whatever was begun with a higher one does not count: a read is made again, a proof thrown away.
type bound struct {
	step sync.Mutex // held for one step of the proof; guards proof
	proof

	mu       sync.Mutex
	at       int64
	lowered  uint64 // how often
	lowering int    // operations under way that make rows ready
	barred   time.Time
	seen     int64  // every row up to here could be seen
	losses   uint64 // how often that was given up
	taken    taken
}

// proof is what one needs to move the bound up to a position: the writers that may have drawn a lower
// one and were there when it was the last position drawn. They hold a lock on the table from before they
// draw until their rows can be seen. A transaction id is no witness: a writer may draw a position long
// before it has one.
type proof struct {
	upto    int64
	writers []string
	begun   bool
	stepped time.Time // the last step
	full    time.Time // the last proof from the bottom

	proved bool   // every row up to upto could be seen, while the bound had this token
	token  uint64 // see bound.get

	before uint64 // see bound.known, of the moment before this step
	since  uint64 // and before the one that began the proof
}

// get returns the bound, and what stale wants to know.
func (b *bound) get() (at int64, token uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.at, b.lowered
}

// stale reports whether the bound was lowered since.
func (b *bound) stale(token uint64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.lowered != token
}

// set moves the bound, if the proof is not older than the last lowering.
func (b *bound) set(at int64, token uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.lowered == token && b.lowering == 0 && !time.Now().Before(b.barred) {
		if at < b.at { // somebody made a row ready by hand
			b.taken.toBottom()
		}
		b.at = at
	}
}

// lower takes the bound to the bottom until the returned function is called, from where a new proof may
// raise it. If the operation failed, it may take effect later; then the bound stays there for a while.
func (b *bound) lower() (done func(error)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.at = 0
	b.taken.toBottom()
	b.lowered++
	b.lowering++
	return func(err error) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.lowered++
		b.lowering--
		if err != nil {
			b.barred = time.Now().Add(boundTrust)
		}
	}
}

// reset takes the bound to the bottom, and gives up what is known of writers: positions may be drawn again.
func (b *bound) reset() {
	b.lower()(nil)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.seen = 0
	b.losses++
}

// known reports how often what is known of writers was given up.
func (b *bound) known() (losses uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.losses
}

// sees notes that every row up to a position could be seen, unless that was given up since.
func (b *bound) sees(upto int64, losses uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.losses == losses {
		b.seen = upto
	}
}

// due reports whether a step of the proof is. The first one is so after a pause, or when hurry says so.
func (p *proof) due() bool {
	first := p.stepped.IsZero()
	if !first && time.Since(p.stepped) < boundPause {
		return false
	}
	p.stepped = time.Now()
	return !first
}

// hurry makes a step due that waits for its pause, unless one is under way.
func (b *bound) hurry() {
	if b.step.TryLock() {
		defer b.step.Unlock()
		b.stepped = b.stepped.Add(-boundPause)
	}
}

// holds reports whether there is nothing to prove: no position was drawn since the last proof, and nothing has
// lowered the bound since. From time to time it is proved all the same.
func (p *proof) holds(last int64, token uint64) bool {
	return p.proved && p.token == token && p.upto == last && !p.begun && !p.old()
}

// old reports whether a proof from the bottom is due.
func (p *proof) old() bool { return p.stepped.Sub(p.full) >= boundTrust }

// wait takes the writers of this moment and the position that was drawn last before, and reports whether
// every row up to p.upto can be seen by now.
func (p *proof) wait(last int64, writers []string) bool {
	if !p.begun {
		p.begun, p.upto, p.writers, p.since = true, last, writers, p.before
	} else {
		// A writer of then may be a prepared transaction by now, which has another name.
		p.writers = slices.DeleteFunc(writers, func(w string) bool { return w != prepared && !slices.Contains(p.writers, w) })
	}
	return len(p.writers) == 0
}
