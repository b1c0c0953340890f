package outbox

import (
	"context"
	"math"
	"math/bits"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/millrace-go/millrace/internal/txn"
)

// postgres is the store on PostgreSQL. Each operation is one statement.
//
// A statement that writes first locks the rows of the lanes whose epoch it relies on (FOR SHARE, in a
// MATERIALIZED step): a plain EXISTS would look at the statement's snapshot, and pass although the
// lane was taken over meanwhile. Take-overs skip locked lanes. Foreign locks on messages are skipped as
// well; other waits end after a second.
type postgres struct {
	*sqlStore
	size  tableSize
	bound bound
	along shortcut     // of reads
	next  nexts        // of those, by topics
	plain shortcut     // of settling
	first sync.Once    // read
	parts atomic.Int32 // of how many lanes and topics the rows of the last full read were
}

// tag makes one statement into several, by the size of the table. Drivers keep statements prepared, and
// the server keeps their plans: one that was made while the table was empty, and reads it from end to
// end, would go on doing so when it holds a million rows.
func (p *postgres) tag(ctx context.Context) string {
	return p.size.tag(func() (pages int64, err error) {
		query := rename(`SELECT pg_relation_size('millrace_outbox') / 8192`, p.prefix)
		err = p.pool.Query(ctx, query, nil, func(row txn.Scanner) error { return row.Scan(&pages) })
		return pages, err
	})
}

var afterParam = regexp.MustCompile(`\{after (\$\d+|[a-z_]+)\}`)

func (p *postgres) translate(text string) string { return postgresText(text) }

func postgresText(text string) string {
	text = afterParam.ReplaceAllString(anyIndex(text), `clock_timestamp() + ($1)::bigint * interval '1 microsecond'`)
	text = beforeParam.ReplaceAllString(text, `(SELECT clock_timestamp() - ($1)::bigint * interval '1 microsecond')`)
	text = ageOf.ReplaceAllString(text, `(extract(epoch FROM clock_timestamp() - $1) * 1000000)::bigint`)
	text = usOf.ReplaceAllString(text, `(extract(epoch FROM $1) * 1000000)::bigint`)
	text = atOf.ReplaceAllString(text, `('epoch'::timestamptz + ($1)::bigint * interval '1 microsecond')`)
	return strings.NewReplacer("{now}", "clock_timestamp()", "{ready}", "ready", "{unready}", "NOT ready").Replace(text)
}

// pgHeld locks the lane of one grant: $1 lane, $2 epoch.
const pgHeld = `l AS MATERIALIZED (
	SELECT lane FROM millrace_lanes
	WHERE (SELECT set_config('lock_timeout', '1s', true)) IS NOT NULL AND lane = $1::int AND epoch = $2::bigint
	FOR SHARE)`

// pgAllHeld locks the lanes of many grants: $1 lanes, $2 epochs.
const pgAllHeld = `l AS MATERIALIZED (
	SELECT m.lane FROM millrace_lanes m
	JOIN unnest($1::text::int[], $2::text::bigint[]) AS g(lane, epoch) ON m.lane = g.lane AND m.epoch = g.epoch
	WHERE (SELECT set_config('lock_timeout', '1s', true)) IS NOT NULL
	ORDER BY m.lane FOR SHARE OF m)`

// A lane that was claimed by another while this statement ran has another epoch than in the snapshot,
// and is left alone although its new owner may not be in the snapshot.
const pgClaim = `WITH free AS MATERIALIZED (
	SELECT lane, epoch FROM millrace_lanes l
	WHERE NOT EXISTS (SELECT 1 FROM millrace_forwarders f WHERE f.id = l.owner)
	  AND EXISTS (SELECT 1 FROM millrace_forwarders f WHERE f.id = $1)),
c AS MATERIALIZED (
	SELECT l.lane FROM millrace_lanes l JOIN free ON free.lane = l.lane AND free.epoch = l.epoch
	ORDER BY l.lane LIMIT $2::int FOR UPDATE OF l SKIP LOCKED)
UPDATE millrace_lanes l
SET owner = $1, epoch = l.epoch + 1, crashes = l.crashes + CASE WHEN l.owner IS NULL THEN 0 ELSE 1 END
FROM c WHERE l.lane = c.lane
RETURNING l.lane, l.epoch, l.crashes`

func (p *postgres) claim(ctx context.Context, replica string, n int) (grants []Grant, err error) {
	err = p.query(ctx, "claim", pgClaim, []any{replica, n}, func(row txn.Scanner) error {
		var g Grant
		err := row.Scan(&g.Lane, &g.Epoch, &g.Crashes)
		grants = append(grants, g)
		return err
	})
	if err != nil || len(grants) > 0 {
		p.bound.lower()(err) // the last holder may have made rows ready
	}
	return grants, err
}

const pgRelease = `WITH l AS MATERIALIZED (
	SELECT l.lane FROM millrace_lanes l
	JOIN unnest($1::text::int[], $2::text::bigint[]) AS g(lane, epoch) ON l.lane = g.lane AND l.epoch = g.epoch
	WHERE (SELECT set_config('lock_timeout', '1s', true)) IS NOT NULL
	ORDER BY l.lane FOR UPDATE OF l)
UPDATE millrace_lanes SET owner = NULL FROM l WHERE millrace_lanes.lane = l.lane`

func (p *postgres) release(ctx context.Context, grants []Grant) error {
	lanes, epochs := lanesAndEpochs(grants)
	_, err := p.exec(ctx, "release", pgRelease, intArray(lanes), intArray(epochs))
	return err
}

// The lanes are locked in the order in which a release locks them that is under way yet.
const pgLeave = `WITH l AS MATERIALIZED (
	SELECT lane FROM millrace_lanes
	WHERE (SELECT set_config('lock_timeout', '1s', true)) IS NOT NULL AND owner = $1
	ORDER BY lane FOR UPDATE),
u AS (UPDATE millrace_lanes SET owner = NULL FROM l WHERE millrace_lanes.lane = l.lane)
DELETE FROM millrace_forwarders WHERE id = $1`

func (p *postgres) leave(ctx context.Context, replica string) error {
	_, err := p.exec(ctx, "leave", pgLeave, replica)
	return err
}

// What is in flight and which keys are busy is excluded here and not afterwards: the snapshot of an
// answer may hold rows that were settled since. The exclusions are hashed subqueries, evaluated once.
// All parameters stand in subqueries because the planner then knows as little of them as it does without them:
// else it takes its plan without them for the dearer one, and makes a new one for each read, which takes as long as
// finding a hundred rows. How many rows of each lane and topic are wanted it has to know: not knowing, it expects a tenth
// of them, and sorts large lanes instead of following the index. So that stands in the text.
// $1 lanes, $2 topics, $3 in flight, $4 busy keys, $5 rows, $6 bytes, $7 where each lane begins.
const pgRead = `WITH c AS MATERIALIZED (
	SELECT o.pos, o.size
	FROM unnest((SELECT $1::text::int[]), (SELECT $7::text::bigint[])) AS l(lane, above)
	CROSS JOIN unnest((SELECT $2::text::text[])) AS t(topic)
	CROSS JOIN LATERAL (
		SELECT p.pos, p.size FROM millrace_outbox p
		WHERE p.ready AND p.topic = t.topic AND p.lane = l.lane AND p.pos > l.above
		  AND p.pos NOT IN (SELECT unnest((SELECT $3::text::bigint[])))
		  AND p.order_key NOT IN (SELECT unnest((SELECT $4::text::text[])))
		ORDER BY p.pos LIMIT {few}) o
	ORDER BY o.pos LIMIT (SELECT $5::int)),
s AS (
	SELECT pos, row_number() OVER w AS n, sum(size) OVER w AS bytes, count(*) OVER () AS candidates
	FROM c WINDOW w AS (ORDER BY pos))
SELECT ` + pgRowColumns + `, s.candidates
FROM s JOIN millrace_outbox o ON o.pos = s.pos
WHERE s.n = 1 OR s.bytes <= (SELECT $6::bigint)
ORDER BY o.pos`

const pgRowColumns = `o.pos, o.id, o.lane, o.topic, o.order_key, o.attempts, o.size, o.metadata, o.payload,
	` + pgCreatedAt + `, o.schedule IS NOT NULL`

// pgCreatedAt is a number, because a time in text is written as DateStyle wants it. A float8 holds the microseconds of any
// time before 2106, rounded; to work out a numeric, as extract does, costs twice as much.
const pgCreatedAt = `(date_part('epoch', o.created_at) * 1000000)::bigint`

// A read counts only if the bound has not been lowered meanwhile: rows below it may have become ready
// just before those that were read, and go ahead of them. The first read has no bound and does not wait for one; those
// that follow would walk over what it brought.
func (p *postgres) read(ctx context.Context, q Read) ([]Row, error) {
	p.raise(ctx)
	defer p.first.Do(p.bound.hurry)
	for {
		from := p.bound.begin(q)
		rows, err := p.readFrom(ctx, q, from)
		if err != nil {
			p.bound.reset() // the server may have lost commits: positions are drawn again
			return nil, err
		}
		if from.highest == 0 || !p.bound.stale(from.token) {
			return rows, nil
		}
	}
}

func (p *postgres) readFrom(ctx context.Context, q Read, from look) ([]Row, error) {
	if rows, ok, err := p.readAlong(ctx, q, from); ok || err != nil {
		return rows, err
	}
	for perPart := fairPart(q, int(p.parts.Load())); ; perPart = roundUp(q.MaxRows) {
		rows, candidates, err := p.readOnce(ctx, q, from, perPart)
		if err != nil {
			return nil, err
		}
		if !short(q, rows, candidates, perPart) {
			if len(rows) == q.MaxRows {
				p.parts.Store(int32(spread(rows)))
			}
			p.bound.end(from, q, rows, top(q, rows, candidates), perPart)
			return rows, nil
		}
	}
}

// top is the highest position that a read looked at which found so many candidates.
func top(q Read, rows []Row, candidates int) int64 {
	if n := len(rows); n > 0 && (n >= q.MaxRows || n < candidates) {
		return rows[n-1].Pos // a limit cut off what is above
	}
	return math.MaxInt64
}

// fairPart is how many rows of one lane and topic a read looks at if so many of these have rows, 0 if that is not
// known: a quarter more than its fair part, because a few have less.
func fairPart(q Read, parts int) int {
	if parts == 0 || parts > q.parts() {
		parts = q.parts()
	}
	return roundUp(min(q.MaxRows, max(8, (5*q.MaxRows+4*parts-1)/(4*parts))))
}

// roundUp keeps three binary digits of n, so that there are few texts.
func roundUp(n int) int {
	step := 1 << max(0, bits.Len(uint(n))-3)
	return (n + step - 1) / step * step
}

// readText is a read that looks at so many rows of each lane and topic.
func readText(perPart int) string { return strings.Replace(pgRead, "{few}", strconv.Itoa(perPart), 1) }

func (p *postgres) readOnce(ctx context.Context, q Read, from look, perPart int) (rows []Row, candidates int, err error) {
	args := []any{
		intArray(q.Lanes), textArray(q.Topics), intArray(from.exclude), textArray(q.BusyKeys),
		q.MaxRows, q.MaxBytes, intArray(from.above),
	}
	in := newRowReader(&candidates)
	err = p.query(ctx, "read", readText(perPart), args, func(row txn.Scanner) error {
		r, err := in.read(row)
		if rows == nil {
			rows = make([]Row, 0, candidates)
		}
		rows = append(rows, r)
		return err
	})
	return rows, candidates, err
}

func (p *postgres) stops(ctx context.Context, lanes []int) ([]Stop, error) {
	return scanStops(func(row func(txn.Scanner) error) error {
		return p.query(ctx, "stops", `SELECT s.lane, s.destination, s.order_key, s.pos FROM millrace_stops s
			WHERE s.lane = ANY ($1::text::int[]) AND (SELECT true FROM millrace_outbox o WHERE o.pos = s.pos)`,
			[]any{intArray(lanes)}, row)
	})
}

func scanStops(query func(func(txn.Scanner) error) error) ([]Stop, error) {
	var stops []Stop
	err := query(func(row txn.Scanner) error {
		var s Stop
		err := row.Scan(&s.Lane, &s.Destination, &s.Key, &s.Pos)
		stops = append(stops, s)
		return err
	})
	return stops, err
}
