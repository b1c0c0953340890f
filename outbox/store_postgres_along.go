package outbox

import (
	"context"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/millrace-go/millrace/internal/txn"
)

// Reading lane by lane finds each row twice: its position by the index of what is ready, and the row by its
// position. While a backlog is worked off, the next rows of the table are just those that are wanted, and one walk
// along the primary key brings them at half the price. It looks at a bounded number of rows, so that what is not
// wanted (other lanes, other topics, what may not go yet) costs little; if there is much of that, the read is made
// lane by lane, and so are the next ones.

// $1 above, $2 rows, $3 lanes, $4 topics, $5 in flight, $6 busy keys, $7 bytes. A row that is not wanted is answered
// without its content: the reader must know how far it looked. As in pgRead, what the planner has to know stands in
// the text, and what it must not know in subqueries. The columns are named twice because a plan of * does not
// outlive a change of the table.
const pgAlong = `SELECT o.pos, o.id, o.lane, o.topic, o.order_key, o.attempts, o.size,
	CASE WHEN o.wanted THEN o.metadata ELSE '{}' END, CASE WHEN o.wanted THEN o.payload END,
	(extract(epoch FROM o.created_at) * 1000000)::bigint, o.schedule IS NOT NULL, o.wanted
FROM (
	SELECT r.*, count(*) FILTER (WHERE r.wanted) OVER w AS n, sum(r.size) FILTER (WHERE r.wanted) OVER w AS bytes
	FROM (
		SELECT pos, id, lane, topic, order_key, attempts, size, metadata, payload, created_at, schedule, ready
			AND lane IN (SELECT unnest((SELECT $3::text::int[])))
			AND topic IN (SELECT unnest((SELECT $4::text::text[])))
			AND pos NOT IN (SELECT unnest((SELECT $5::text::bigint[])))
			AND order_key NOT IN (SELECT unnest((SELECT $6::text::text[]))) AS wanted
		FROM millrace_outbox WHERE pos > (SELECT $1::bigint) ORDER BY pos LIMIT {few}) r
	WINDOW w AS (ORDER BY r.pos ROWS UNBOUNDED PRECEDING)) o
WHERE o.n <= (SELECT $2::int) AND (o.n <= 1 OR o.bytes <= (SELECT $7::bigint))
ORDER BY o.pos`

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

// readAlong reads along the primary key. It reports false if it did not, or found less than was asked for and
// looked no further: whoever reads takes that for all there is.
func (p *postgres) readAlong(ctx context.Context, q Read, from look) (rows []Row, ok bool, err error) {
	n := alongLook(q, len(from.exclude))
	if n == 0 || !p.along.worth() {
		return nil, false, nil
	}
	looked, last := 0, int64(math.MaxInt64)
	wanted := false
	in := newRowReader(&wanted)
	args := []any{
		slices.Min(from.above), q.MaxRows, intArray(q.Lanes), textArray(q.Topics), intArray(from.exclude), textArray(q.BusyKeys), q.MaxBytes,
	}
	err = p.query(ctx, "read", alongText(n), args, func(row txn.Scanner) error {
		r, err := in.read(row)
		looked, last = looked+1, r.Pos
		if !wanted || err != nil {
			return err
		}
		switch { // few as a rule, else as many as were asked for
		case rows == nil:
			rows = make([]Row, 0, min(q.MaxRows, 64))
		case len(rows) == cap(rows):
			rows = slices.Grow(rows, q.MaxRows-len(rows))
		}
		rows = append(rows, r)
		return nil
	})
	if err != nil {
		return nil, false, err
	}
	if looked >= n && len(rows) < q.MaxRows {
		p.along.failed()
		return nil, false, nil
	}
	p.bound.end(from, q, rows, last, math.MaxInt)
	return rows, true, nil
}
