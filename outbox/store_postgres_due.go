package outbox

import (
	"context"
	"time"

	"github.com/millrace-go/millrace/internal/txn"
)

// maxPromoted bounds what becomes due in one Promote.
const maxPromoted = 1000

// soon is the answer to "when is the next one due" while rows that are due were left for next time.
const soon = time.Millisecond

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

// $3 is the most rows that become due at once. A held key is set free as a whole, with its stale stop.
const pgPromote = `WITH RECURSIVE ` + pgAllHeld + `, ` + pgHeldKeys + `,
stale AS (
	DELETE FROM millrace_stops s USING orphans f
	WHERE s.lane = f.lane AND s.destination = f.held AND s.order_key = f.order_key),
freed AS (
	UPDATE millrace_outbox o SET ready = true, held = NULL FROM orphans f
	WHERE o.lane = f.lane AND o.held = f.held AND o.order_key = f.order_key RETURNING 1),
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
	v.Next, v.overdue = then.wait(), then.late()
	return v, err
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

func (v lookout) wait() (next time.Duration) {
	for _, due := range []*int64{v.due, v.overdue} {
		if due == nil {
			continue
		}
		if d := max(time.Duration(*due)*time.Microsecond, soon); next == 0 || d < next {
			next = d
		}
	}
	return next
}
