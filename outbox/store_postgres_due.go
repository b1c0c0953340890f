package outbox

import (
	"context"
	"time"

	"github.com/millrace-go/millrace/internal/txn"
)

// maxPromoted bounds what becomes due in one Promote, and what is set free in it; maxOrphans is about of how many keys. On
// PostgreSQL they stand in the text, too.
const (
	maxPromoted = 1000
	maxOrphans  = 100
)

// soon is the answer to "when is the next one due" while rows that are due were left for next time.
const soon = time.Millisecond

// lockedPause is how long a Promote that found nothing but rows that somebody else has locked is not worth another one:
// a cancellation that is open may stay so for long. What is unlocked or due meanwhile waits for no more than that.
const lockedPause = 50 * time.Millisecond

// pgHeldKeys finds the keys that are held in the lanes l by hopping through the index, and among them
// those that no stop of a message that still waits holds.
const pgHeldKeys = `h AS (
	SELECT l.lane, x.held, x.order_key FROM l CROSS JOIN LATERAL (
		SELECT held, order_key FROM millrace_outbox o WHERE o.lane = l.lane AND o.held IS NOT NULL
		ORDER BY held, order_key LIMIT 1) x
	UNION ALL
	SELECT h.lane, x.held, x.order_key FROM h CROSS JOIN LATERAL (
		SELECT held, order_key FROM millrace_outbox o
		WHERE o.lane = h.lane AND o.held IS NOT NULL AND (o.held, o.order_key) > (h.held, h.order_key)
		ORDER BY held, order_key LIMIT 1) x),
orphans AS MATERIALIZED (
	SELECT h.lane, h.held, h.order_key FROM h WHERE NOT EXISTS (
		SELECT 1 FROM millrace_stops s
		WHERE s.lane = h.lane AND s.destination = h.held AND s.order_key = h.order_key
		  AND (SELECT true FROM millrace_outbox o WHERE o.pos = s.pos)))` // no join: it could read the whole table

// The look that tells whether there is anything to do writes nothing, so that an idle forwarder
// consumes no transaction ids. It answers with the microseconds until the earliest due time.
const pgLook = `WITH RECURSIVE l AS (SELECT unnest($1::text::int[]) AS lane), ` + pgHeldKeys + `
SELECT
	(SELECT (extract(epoch FROM min(n.due_at) - clock_timestamp()) * 1000000)::bigint FROM l CROSS JOIN LATERAL (
		SELECT o.due_at FROM millrace_outbox o WHERE o.lane = l.lane AND o.due_at IS NOT NULL
		ORDER BY o.due_at LIMIT 1) n),
	(SELECT count(*) FROM orphans),
	(SELECT (extract(epoch FROM min(n.due_at) - clock_timestamp()) * 1000000)::bigint FROM l CROSS JOIN LATERAL (
		SELECT s.due_at FROM millrace_sent s WHERE s.lane = l.lane AND s.due_at IS NOT NULL
		ORDER BY s.due_at LIMIT 1) n)`

// $3 is the most rows that become due at once, and that are set free, of which each of the keys f has its part. Of a key
// they are the lowest, and none behind one that somebody else has locked: that one may stay, and must not be overtaken.
// The stale stop goes with the last of them, unless it has become the stop of another message since the statement began.
// Limits that are in the text, and names by an array, tell the planner that few rows are meant: it would read the table
// from end to end for them, and take that for so much that it compiles the statement, which takes seconds.
const pgPromote = `WITH RECURSIVE ` + pgAllHeld + `, ` + pgHeldKeys + `,
f AS MATERIALIZED (SELECT lane, held, order_key FROM orphans LIMIT 100),
n AS MATERIALIZED (SELECT $3::int / greatest(count(*), 1) AS most FROM f),
c AS MATERIALIZED (
	SELECT f.lane, f.held, f.order_key, x.pos FROM f CROSS JOIN LATERAL (
		SELECT pos FROM (
			SELECT pos FROM millrace_outbox o WHERE o.lane = f.lane AND o.held = f.held AND o.order_key = f.order_key
			ORDER BY pos LIMIT 1000) y
		ORDER BY pos LIMIT (SELECT most FROM n)) x
	LIMIT 1000),
k AS MATERIALIZED (
	SELECT pos FROM millrace_outbox WHERE pos = ANY (ARRAY (SELECT pos FROM c)) AND held IS NOT NULL
	ORDER BY pos FOR UPDATE SKIP LOCKED),
e AS MATERIALIZED (
	SELECT c.lane, c.held, c.order_key, coalesce(min(c.pos) FILTER (WHERE k.pos IS NULL), max(c.pos) + 1) AS below,
		count(k.pos) = count(*) AND count(*) < (SELECT most FROM n) AS last
	FROM c LEFT JOIN k ON k.pos = c.pos GROUP BY c.lane, c.held, c.order_key),
stale AS (
	DELETE FROM millrace_stops s USING e
	WHERE e.last AND s.lane = e.lane AND s.destination = e.held AND s.order_key = e.order_key
	  AND (SELECT true FROM millrace_outbox o WHERE o.pos = s.pos) IS NULL),
freed AS (
	UPDATE millrace_outbox SET ready = true, held = NULL WHERE pos = ANY (ARRAY (
		SELECT c.pos FROM c JOIN e ON e.lane = c.lane AND e.held = c.held AND e.order_key = c.order_key WHERE c.pos < e.below))
	RETURNING 1),
d AS MATERIALIZED (
	SELECT o.pos FROM l CROSS JOIN LATERAL (
		SELECT pos, due_at FROM millrace_outbox o
		WHERE o.lane = l.lane AND o.due_at <= (SELECT clock_timestamp()) ORDER BY o.due_at LIMIT $3::int) x
	JOIN millrace_outbox o ON o.pos = x.pos AND o.due_at = x.due_at
	ORDER BY o.pos LIMIT $3::int FOR UPDATE OF o SKIP LOCKED),
due AS (
	UPDATE millrace_outbox o SET ready = true, due_at = NULL FROM d WHERE o.pos = d.pos RETURNING 1)
SELECT (SELECT count(*) FROM freed) + (SELECT count(*) FROM due), (SELECT count(*) FROM due)`

func (p *postgres) promote(ctx context.Context, grants []Grant) (Promotion, error) {
	lanes, epochs := lanesAndEpochs(grants)
	first, err := p.look(ctx, lanes)
	if err != nil || !first.work() {
		return first.promotion(), err
	}
	var v Promotion
	due := 0
	args := []any{intArray(lanes), intArray(epochs), maxPromoted}
	done := p.bound.lower()
	err = p.query(ctx, "promote", pgPromote, args, func(row txn.Scanner) error { return row.Scan(&v.Ready, &due) })
	done(err)
	if err != nil {
		return Promotion{}, err
	}
	if due == maxPromoted {
		v.Next = soon
		return v, nil
	}
	then, err := p.look(ctx, lanes)
	return v.before(then), err
}

func (p *postgres) look(ctx context.Context, lanes []int) (v lookout, err error) {
	err = p.query(ctx, "promote", pgLook, []any{intArray(lanes)}, func(row txn.Scanner) error {
		return row.Scan(&v.due, &v.orphans, &v.overdue)
	})
	return v, err
}

// lookout is what waits for a time or a stop.
type lookout struct {
	due     *int64 // microseconds until the earliest, nil for none
	orphans int    // held, and no stop holds them
	overdue *int64 // microseconds until the next confirmation is overdue, nil if none is awaited
}

func (v lookout) work() bool { return v.orphans > 0 || v.due != nil && *v.due <= 0 }

func (v lookout) late() bool { return v.overdue != nil && *v.overdue <= 0 }

func (v lookout) promotion() Promotion { return Promotion{Next: v.wait(), overdue: v.late()} }

// before is what was done, and when there is more to do, by a look at what is left.
func (p Promotion) before(left lookout) Promotion {
	p.Next, p.overdue = left.wait(), left.late()
	switch {
	case !left.work():
	case p.Ready == 0:
		p.Next = lockedPause
	default:
		p.Next = soon
	}
	return p
}

// wait is the time until something is due. What is overdue is seen to in a transaction of its own, which may find it locked.
func (v lookout) wait() (next time.Duration) {
	if v.due != nil {
		next = max(time.Duration(*v.due)*time.Microsecond, soon)
	}
	if v.overdue != nil {
		if d := max(time.Duration(*v.overdue)*time.Microsecond, lockedPause); next == 0 || d < next {
			next = d
		}
	}
	return next
}
