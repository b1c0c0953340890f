package forwarder

import (
	"slices"
	"time"

	"github.com/millrace-go/millrace/outbox"
)

// state is where an item stands between its read and the end of its row.
type state int8

const (
	queued    state = iota // read, not handed out
	flying                 // with the publisher
	confirmed              // stored by the broker, row not yet deleted
	recording              // refused, not yet recorded
	holding                // behind a stop, not yet made not ready
	resting                // may be about to be cancelled: not to be read for a moment
)

// item is one row in the window.
type item struct {
	row   outbox.Row
	lane  *lane
	key   *queue // nil if the row has no key
	state state

	attempt int  // number of the attempt under way
	counted int  // attempts that the store knows of
	first   bool // came with the first read of its lane
	heaped  bool // is in window.ready or window.single
	lone    bool // is out as one of the single ones
	marked  bool // can no longer be cancelled
	handed  bool // a publisher has got its metadata
	round   int  // of the look-out when it came
	since   time.Time

	reason, text string // why it was refused
}

// careful reports whether the item goes through a lane whose holders died one after the other: alone,
// and with the attempt written before it is made, so that a message that kills its process is found.
func (it *item) careful() bool { return it.lane.careful }

// idle reports whether neither the broker nor the store has to answer for the item.
func (it *item) idle() bool {
	return it.state == queued || it.state == holding || it.state == resting
}

// begin numbers the attempt that is about to be made, unless the one before has no outcome yet.
func (it *item) begin(most int) {
	switch {
	case it.attempt > 0:
	case it.counted >= most:
		it.attempt = it.counted // the outcome of the last one is not known
	default:
		it.attempt = it.counted + 1
	}
}

// alone reports whether the item gets a call of the publisher for itself: its attempt is counted first,
// and if it takes the channel down, it takes nothing along.
func (it *item) alone() bool { return it.careful() || it.counted > 0 || it.row.Err != nil }

// lane is one lane as long as this replica holds it under one epoch, and as far as one destination is
// concerned.
type lane struct {
	win     *window
	grant   outbox.Grant
	careful bool
	leaving bool // to be released: nothing more is read or handed out
	lost    bool // not ours any more
	seen    bool // a read covered it
	calm    bool // nothing of this destination stands in the way of resetting its crash count
	round   int  // of the look-out when it was taken up
	first   int  // items of the first read that are still here
	items   int
	pending int              // items of which the store or the broker must still hear
	stops   map[string]int64 // key -> position of the message that failed
	holding []*item
}

// queue is one key's items, in order of position. The first flying ones are out.
type queue struct {
	name   string
	lane   *lane
	items  []*item
	flying int
	batch  uint64 // the batch that the flying ones are in
}

// window is what the forwarder knows of the outbox at this moment, of one destination: pure state, no I/O,
// guarded by its owner. A position that is in it is not read again.
type window struct {
	pipe     *pipeline
	ordered  bool // the publisher takes several items of a key in one batch
	singles  int  // items that go alone and may be out together
	hotKey   int  // items of one key in memory from which on no more are wanted
	maxRows  int
	maxBytes int

	lanes  map[int]*lane
	known  map[int64]*item
	keys   map[string]*queue
	ready  heap
	bytes  int
	flying int // items with the publisher, those of lost lanes included

	batch   uint64 // the batch being built
	round   int    // of the look-out
	out     int    // single ones with the publisher
	fragile *fragile

	single   heap // as ready, of items that go alone
	settling []*item
	desk     []task
	rest     []*item // that are resting

	reading map[int]*lane       // lanes of the open read, nil if none is open
	partial bool                // there are others
	erased  map[int64]struct{}  // what left since that read began
	barred  map[string]struct{} // keys of which that read is not to bring anything
	hungry  bool                // rows may be waiting that a limit kept out
}

// fragile is the one careful item that is out, of all windows of a forwarder: if the process dies, it is
// to be known over which.
type fragile struct{ item *item }

func newWindow(p *pipeline, cfg Config, ordered bool, f *fragile) *window {
	w := &window{
		pipe: p, ordered: ordered, singles: max(1, cfg.Batches/2), fragile: f, maxRows: cfg.ReadAheadRows, maxBytes: cfg.ReadAheadBytes,
		hotKey: max(1, cfg.BatchRows/8),
		lanes:  map[int]*lane{}, known: map[int64]*item{}, keys: map[string]*queue{},
	}
	if ordered {
		w.hotKey = cfg.BatchRows
	}
	return w
}

// hold takes up a lane with the stops that are stored for it.
func (w *window) hold(g outbox.Grant, stops map[string]int64) {
	w.lanes[g.Lane] = &lane{win: w, grant: g, careful: g.Crashes >= 2, calm: g.Crashes == 0, round: w.round, stops: stops}
}

// lose forgets a lane and everything in it. What is with the publisher comes back and is ignored.
func (w *window) lose(number int) {
	l := w.lanes[number]
	if l == nil {
		return
	}
	l.lost = true
	delete(w.lanes, number)
	for _, it := range w.known {
		if it.lane == l {
			w.remove(it)
		}
	}
	for name, q := range w.keys {
		if q.lane == l {
			delete(w.keys, name)
		}
	}
}

// leave stops handing out what is in a lane, and drops what is not out yet.
func (w *window) leave(l *lane) {
	l.leaving = true
	l.holding = nil
	for _, it := range w.known {
		if it.lane == l && it.idle() {
			w.remove(it)
		}
	}
}

// add takes a row up and reports whether it was new.
func (w *window) add(row *outbox.Row, now time.Time) bool {
	l := w.lanes[row.Lane]
	if l == nil || l.leaving || w.reading[row.Lane] != l {
		return false
	}
	if _, there := w.known[row.Pos]; there {
		return false
	}
	if _, left := w.erased[row.Pos]; left {
		return false
	}
	if _, barred := w.barred[row.Key]; barred {
		return false
	}
	it := &item{row: *row, lane: l, counted: row.Attempts, first: !l.seen, round: w.round, since: now}
	w.known[row.Pos] = it
	w.bytes += row.Size
	l.items++
	if it.first {
		l.first++
	}
	if stop, stopped := l.stops[row.Key]; stopped && row.Key != "" && row.Pos > stop {
		w.putAside(it)
		return true
	}
	if row.Key != "" {
		it.key = w.queue(row.Key, l)
		it.key.insert(it)
		w.wake(it.key)
	} else {
		w.push(it)
	}
	return true
}

// remove ends an item. A read that is open may still bring its row, and must not bring it back.
func (w *window) remove(it *item) {
	if w.known[it.row.Pos] != it {
		return
	}
	w.safe(it)
	delete(w.known, it.row.Pos)
	if w.reading != nil {
		w.erased[it.row.Pos] = struct{}{}
	}
	w.bytes -= it.row.Size
	l := it.lane
	l.items--
	if it.first {
		l.first--
	}
	if !it.idle() {
		l.pending--
	}
	if it.key != nil {
		w.dequeue(it)
	}
	w.soothe(l)
}

// reread ends an item whose row is not as it is remembered. If it is there, what stands behind it of its key must not
// overtake it: that is read again with it, and by no read that is open, which does not bring the row itself.
func (w *window) reread(it *item) {
	w.hungry = true
	if q := it.key; q != nil {
		if w.reading != nil {
			w.barred[q.name] = struct{}{}
		}
		for _, behind := range slices.Clone(q.items) {
			if behind != it && behind.state == queued {
				w.remove(behind)
			}
		}
	}
	w.remove(it)
}

// soothe ends the care for a lane once its first read has been worked off: its crash count is reset.
func (w *window) soothe(l *lane) {
	if l.seen && l.first == 0 && !l.calm && !l.lost {
		l.calm, l.careful = true, false
		w.desk = append(w.desk, task{kind: taskCalm, lane: l})
	}
}

// putAside marks an item as standing behind a stop.
func (w *window) putAside(it *item) {
	it.state = holding
	it.lane.holding = append(it.lane.holding, it)
	if len(it.lane.holding) == 1 {
		w.desk = append(w.desk, task{kind: taskHold, lane: it.lane})
	}
}

// stop notes that a key is stopped at a position, and puts aside what stands behind it.
func (w *window) stop(l *lane, key string, pos int64) {
	l.stops[key] = pos
	q := w.keys[key]
	if q == nil || q.lane != l {
		return
	}
	for _, it := range q.items[q.flying:] {
		if it.row.Pos > pos {
			q.items = deleteItem(q.items, it)
			it.key = nil
			w.putAside(it)
		}
	}
	w.tidy(q)
}

func (w *window) queue(key string, l *lane) *queue {
	q := w.keys[key]
	if q == nil {
		q = &queue{name: key, lane: l}
		w.keys[key] = q
	}
	return q
}

// dequeue takes an item out of its key's line and wakes the next one.
func (w *window) dequeue(it *item) {
	q := it.key
	if it.state == flying || it.state == recording {
		q.flying--
	}
	q.items = deleteItem(q.items, it)
	it.key = nil
	if len(q.items) == w.hotKey-1 {
		w.hungry = true
	}
	w.wake(q)
	w.tidy(q)
}

func (w *window) tidy(q *queue) {
	if len(q.items) == 0 && w.keys[q.name] == q {
		delete(w.keys, q.name)
	}
}

// insert keeps the order of positions among those that are not out.
func (q *queue) insert(it *item) {
	i := len(q.items)
	for i > q.flying && q.items[i-1].row.Pos > it.row.Pos {
		i--
	}
	q.items = append(q.items, nil)
	copy(q.items[i+1:], q.items[i:])
	q.items[i] = it
}

// deleteItem returns items without it. The result is a new slice: callers range over the old one.
func deleteItem(items []*item, it *item) []*item {
	if len(items) > 0 && items[0] == it {
		return items[1:]
	}
	kept := make([]*item, 0, len(items))
	for _, other := range items {
		if other != it {
			kept = append(kept, other)
		}
	}
	return kept
}
