package outbox

import (
	"context"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/millrace-go/millrace/internal/txn"
)

// Reading lane by lane finds each row twice: its position by the index of what is ready, and the row by its
// position. While a backlog is worked off, the next rows of the table are just those that are wanted, and one walk
// along the primary key brings them at half the price. It looks at a bounded number of rows, so that what is not
// wanted (other lanes, other topics, what may not go yet) costs little; if there is much of that, the read is made
// lane by lane, and so are the next ones.

// $1 above, $2 rows, $3 lanes, $4 topics, $5 in flight, $6 busy keys. A row that is not wanted is answered without its
// content: the reader must know how far it looked. As in pgRead, what the planner has to know stands in the text, and
// what it must not know in subqueries. The columns are named twice because a plan of * does not outlive a change of the
// table.
const pgStretch = `SELECT pos, id, lane, topic, order_key, attempts, size, metadata, payload, created_at, schedule, ready
			AND lane IN (SELECT unnest((SELECT $3::text::int[])))
			AND topic IN (SELECT unnest((SELECT $4::text::text[])))
			AND pos NOT IN (SELECT unnest((SELECT $5::text::bigint[])))
			AND order_key NOT IN (SELECT unnest((SELECT $6::text::text[]))) AS wanted
		FROM millrace_outbox WHERE pos > (SELECT $1::bigint) ORDER BY pos LIMIT {few}`

const pgStretchColumns = `o.pos, o.id, o.lane, o.topic, o.order_key, o.attempts, o.size,
	CASE WHEN o.wanted THEN o.metadata ELSE '{}' END, CASE WHEN o.wanted THEN o.payload END, ` + pgCreatedAt + `, o.schedule IS NOT NULL, o.wanted`

// pgAlong counts rows and bytes ($7) of what is wanted, and stops where that is enough.
const pgAlong = `SELECT ` + pgStretchColumns + `
FROM (
	SELECT r.*, count(*) FILTER (WHERE r.wanted) OVER w AS n, sum(r.size) FILTER (WHERE r.wanted) OVER w AS bytes
	FROM (
		` + pgStretch + `) r
	WINDOW w AS (ORDER BY r.pos ROWS UNBOUNDED PRECEDING)) o
WHERE o.n <= (SELECT $2::int) AND (o.n <= 1 OR o.bytes <= (SELECT $7::bigint))
ORDER BY o.pos`

// pgNext brings the next rows as they are. It is for a backlog of which all that is not in flight is wanted: counting is a
// third of what pgAlong costs. $2 is how many rows in all. If those have more bytes than a read may bring, the reader
// throws away what is too much as it comes in.
const pgNext = `SELECT ` + pgStretchColumns + ` FROM (` + pgStretch + `) o ORDER BY o.pos LIMIT (SELECT $2::int)`

// mostAlong is how many rows a walk may look at for each that is asked for.
const mostAlong = 3

// alongLook is how many rows a walk looks at to fill a read with so many in flight, 0 if it is not worth one: a
// quarter more than if everything else in these lanes is wanted.
func alongLook(q Read, inFlight int) int {
	if len(q.Lanes) == 0 {
		return 0
	}
	n := roundUp((5*q.MaxRows/4 + 1 + inFlight) * Lanes / len(q.Lanes))
	if n > mostAlong*q.MaxRows {
		return 0
	}
	return n
}

func alongText(look int) string { return strings.Replace(pgAlong, "{few}", strconv.Itoa(look), 1) }

// nextText is one text for nearly all reads: what is in flight is more than what a read wants only where reads begin at
// the bottom.
func nextText(q Read, rows int) string {
	n := 2 * roundUp(q.MaxRows)
	for n < rows {
		n *= 2
	}
	return strings.Replace(pgNext, "{few}", strconv.Itoa(n), 1)
}

// nexts knows of the topics that are read together how large their rows are, and whether they come one after the other.
type nexts struct {
	mu sync.Mutex
	of map[string]*next
}

// mostNexts is how many sets of topics are known at a time; they change as topics come and go.
const mostNexts = 100

type next struct {
	shortcut
	largest atomic.Int64 // size of a row of the last walk that found some
}

func (n *nexts) topics(topics []string) *next {
	name := strings.Join(topics, "\x00")
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.of[name] == nil {
		if n.of == nil || len(n.of) >= mostNexts {
			n.of = map[string]*next{}
		}
		n.of[name] = &next{}
	}
	return n.of[name]
}

// fit reports whether so many rows will not have more bytes, by the largest one of those found last.
func (n *next) fit(rows, bytes int) bool {
	largest := n.largest.Load()
	return largest > 0 && largest*int64(rows) <= int64(bytes)
}

func (n *next) saw(w walk) {
	if w.largest > 0 {
		n.largest.Store(int64(w.largest))
	}
}

// readAlong reads along the primary key. It reports false if it did not, or found less than was asked for and
// looked no further: whoever reads takes that for all there is.
func (p *postgres) readAlong(ctx context.Context, q Read, from look) (rows []Row, ok bool, err error) {
	n := alongLook(q, len(from.exclude))
	if n == 0 || !p.along.worth() {
		return nil, false, nil
	}
	next := p.next.topics(q.Topics)
	if n := q.MaxRows + len(from.exclude); len(q.Lanes) == Lanes && next.fit(n, q.MaxBytes) && next.worth() {
		w, err := p.walk(ctx, q, nextText(q, n), walkArgs(q, from, n))
		next.saw(w)
		enough := err != nil || w.enough(q, n)
		if !enough || w.spilled > q.MaxBytes {
			next.failed()
		}
		if enough {
			return p.walked(q, from, w, err)
		}
	}
	w, err := p.walk(ctx, q, alongText(n), walkArgs(q, from, q.MaxRows, q.MaxBytes))
	next.saw(w)
	if err != nil || w.enough(q, n) {
		return p.walked(q, from, w, err)
	}
	p.along.failed()
	return nil, false, nil
}

func walkArgs(q Read, from look, rows int, more ...any) []any {
	args := []any{slices.Min(from.above), rows, intArray(q.Lanes), textArray(q.Topics), intArray(from.exclude), textArray(q.BusyKeys)}
	return append(args, more...)
}

func (p *postgres) walked(q Read, from look, w walk, err error) ([]Row, bool, error) {
	if err != nil {
		return nil, false, err
	}
	p.bound.end(from, q, w.rows, w.last, math.MaxInt)
	return w.rows, true, nil
}

// walk is what a read along the primary key came by.
type walk struct {
	rows    []Row // that are wanted
	bytes   int   // of these
	looked  int
	last    int64 // position that it looked at
	full    bool  // there was more than a read may bring
	spilled int   // bytes of that
	largest int   // size of a row that is wanted
}

// enough reports whether a walk that may look at n rows brought all that a read wants.
func (w *walk) enough(q Read, n int) bool { return w.full || len(w.rows) == q.MaxRows || w.looked < n }

func (p *postgres) walk(ctx context.Context, q Read, text string, args []any) (walk, error) {
	w := walk{last: math.MaxInt64}
	wanted := false
	in := newRowReader(&wanted)
	err := p.query(ctx, "read", text, args, func(row txn.Scanner) error {
		r, err := in.read(row)
		if err == nil {
			w.take(q, r, wanted)
		}
		return err
	})
	return w, err
}

// take holds a row that is wanted, until there are as many rows or bytes as the read may bring.
func (w *walk) take(q Read, r Row, wanted bool) {
	n := len(w.rows)
	if wanted {
		w.largest = max(w.largest, r.Size)
		if w.full = w.full || n == q.MaxRows || n > 0 && w.bytes+r.Size > q.MaxBytes; w.full {
			w.spilled += r.Size
		}
	}
	if w.full {
		return
	}
	w.looked, w.last = w.looked+1, r.Pos
	if !wanted {
		return
	}
	if n == cap(w.rows) { // few as a rule, else as many as were asked for
		room := q.MaxRows - n
		if n == 0 {
			room = min(room, 64)
		}
		w.rows = slices.Grow(w.rows, room)
	}
	w.rows, w.bytes = append(w.rows, r), w.bytes+r.Size
}
