package outbox

import (
	"math"
	"time"
)

// taken are the rows that this store's reads have brought and that nobody has ended since. Of each lane and topic
// it knows a position up to which every row that is ready is among them: a read begins above it, instead of
// walking over what is in flight.
//
// It is no memory of where the last read ended. Who reads names what is in flight, each time anew; a row that was
// taken and is not named is looked for again, from its place. Below the position nothing can turn up unseen: every
// writer that drew a lower one has ended (see proof), and what makes rows ready lowers the bound, which
// makes reads begin at the bottom. From time to time they do so anyway, because of what somebody does by hand.
type taken struct {
	parts map[readPart]*stretch
	rows  map[int64]*takenRow
	round uint64 // of the reads
	drops uint64 // how often a stretch became shorter
	fresh time.Time
	asked uint64 // the round in which that was
}

// stretch is how far reads have come in one lane and topic.
type stretch struct {
	upto  int64
	rows  int    // that are taken
	round uint64 // of the last read that asked for it
}

type takenRow struct {
	part  *stretch
	round uint64 // of the last read that named it
}

// look is where a read begins, and what it must know to tell afterwards how far it came.
type look struct {
	above   []int64 // by lane of the read
	exclude []int64 // what is in flight above
	highest int64   // of above: 0 if it begins at the bottom everywhere
	token   uint64  // see bound.get
	drops   uint64
	seen    int64 // up to where every row can be seen, 0 if the read is no proof
}

// begin says where a read begins.
func (b *bound) begin(q Read) look {
	b.mu.Lock()
	defer b.mu.Unlock()
	t := &b.taken
	t.refresh(time.Now())
	complete := t.name(q)
	k := look{above: make([]int64, len(q.Lanes)), token: b.lowered, drops: t.drops}
	lowest := int64(math.MaxInt64)
	for i, lane := range q.Lanes {
		upto := int64(math.MaxInt64)
		for _, topic := range q.Topics {
			upto = min(upto, t.parts[readPart{lane, topic}].upto)
		}
		k.above[i] = max(b.at, upto)
		k.highest = max(k.highest, k.above[i])
		lowest = min(lowest, k.above[i])
	}
	for _, pos := range q.Exclude {
		if pos > lowest {
			k.exclude = append(k.exclude, pos)
		}
	}
	// Rows of busy keys are passed over and not named; and what is in flight without having come from here would not
	// be missed when it is dropped.
	if complete && len(q.BusyKeys) == 0 {
		k.seen = b.seen
	}
	return k
}

// name notes what is in flight, and reports whether all of it came from here. What does not is looked for again.
func (t *taken) name(q Read) (complete bool) {
	t.round++
	expected := 0
	for _, lane := range q.Lanes {
		for _, topic := range q.Topics {
			p := t.part(readPart{lane, topic})
			p.round = t.round
			expected += p.rows
		}
	}
	complete = true
	for _, pos := range q.Exclude {
		r := t.rows[pos]
		switch {
		case r == nil:
			complete = false
		case r.round != t.round:
			if r.round = t.round; r.part.round == t.round {
				expected--
			}
		}
	}
	if expected == 0 {
		return complete
	}
	for pos, r := range t.rows {
		if r.part.round == t.round && r.round != t.round {
			r.part.upto = min(r.part.upto, pos-1)
			t.drop(pos, r)
		}
	}
	t.drops++
	return complete
}

func (t *taken) part(name readPart) *stretch {
	p := t.parts[name]
	if p == nil {
		p = &stretch{}
		if t.parts == nil {
			t.parts, t.rows = map[readPart]*stretch{}, map[int64]*takenRow{}
		}
		t.parts[name] = p
	}
	return p
}

func (t *taken) drop(pos int64, r *takenRow) {
	r.part.rows--
	delete(t.rows, pos)
}

// end takes up the answer of a read that looked at perPart rows of each lane and topic, math.MaxInt for all, and at none
// above top.
func (b *bound) end(k look, q Read, rows []Row, top int64, perPart int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	t := &b.taken
	last := map[readPart]int64{}
	found := map[readPart]int{}
	slab := make([]takenRow, len(rows))
	for i, r := range rows {
		name := readPart{r.Lane, r.Topic}
		if perPart < math.MaxInt {
			found[name]++
			last[name] = r.Pos
		}
		p := t.part(name)
		if old := t.rows[r.Pos]; old != nil {
			t.drop(r.Pos, old)
		}
		slab[i].part = p
		t.rows[r.Pos] = &slab[i]
		p.rows++
	}
	if k.seen == 0 || b.lowered != k.token || b.lowering > 0 || t.drops != k.drops || time.Now().Before(b.barred) {
		return
	}
	end := min(k.seen, top)
	for _, lane := range q.Lanes {
		for _, topic := range q.Topics {
			name := readPart{lane, topic}
			upto := end
			if found[name] >= perPart {
				upto = min(end, last[name])
			}
			p := t.part(name)
			p.upto = max(p.upto, upto)
		}
	}
}

// ended forgets rows that were deleted.
func (b *bound) ended(positions []int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, pos := range positions {
		if r := b.taken.rows[pos]; r != nil {
			b.taken.drop(pos, r)
		}
	}
}

// refresh has reads begin at the bottom if they have not done so for long, and forgets what nobody asks for.
func (t *taken) refresh(now time.Time) {
	if now.Sub(t.fresh) < boundTrust {
		return
	}
	for pos, r := range t.rows {
		if r.part.round <= t.asked {
			t.drop(pos, r)
		}
	}
	t.fresh, t.asked = now, t.round
	t.toBottom()
}

// toBottom has reads begin at the bottom.
func (t *taken) toBottom() {
	for name, p := range t.parts {
		if p.upto = 0; p.rows == 0 {
			delete(t.parts, name)
		}
	}
	t.drops++
}
