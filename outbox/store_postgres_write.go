package outbox

import (
	"context"

	"github.com/millrace-go/millrace/internal/txn"
)

// $3 positions, $4 ids. A row is searched for once: it is deleted by its place in the table, which it keeps
// because it is locked. One that was changed since the statement began has another place than this statement
// sees, and one that somebody else has locked is passed over: neither is deleted, and both are tried again.
// The lanes are compared through a hash, and the names deleted by an array: a join could read all of them.
// What is to be remembered moves to the table of sent messages; the others do not carry their payload along.
const pgSettle = `WITH ` + pgAllHeld + `,
d AS MATERIALIZED (
	SELECT o.ctid FROM unnest($3::text::bigint[], $4::text::text[]) AS k(pos, id)
	JOIN millrace_outbox o ON o.pos = k.pos AND o.id = k.id
	WHERE CASE WHEN o.lane IN (SELECT lane FROM l) THEN true ELSE false END
	ORDER BY o.pos FOR UPDATE OF o SKIP LOCKED),
x AS (
	DELETE FROM millrace_outbox WHERE ctid = ANY (ARRAY (SELECT ctid FROM d))
	RETURNING pos, id, lane, topic, order_key, schedule, keep, keep_us, plan, size, created_at,
		CASE WHEN keep > 0 THEN metadata END AS metadata, CASE WHEN keep > 0 THEN payload END AS payload),
m AS (
	INSERT INTO millrace_sent (pos, id, lane, topic, order_key, keep, keep_us, plan, size, metadata, payload, created_at, due_at, expires_at)
	SELECT pos, id, lane, topic, order_key, keep, coalesce(keep_us, 0), plan, size, metadata, payload, created_at,
		CASE WHEN keep = 2 THEN clock_timestamp() + keep_us * interval '1 microsecond' END,
		CASE WHEN keep = 1 THEN clock_timestamp() + keep_us * interval '1 microsecond' END
	FROM x WHERE keep > 0),
n AS (DELETE FROM millrace_schedules WHERE id = ANY (ARRAY (SELECT id FROM x WHERE schedule IS NOT NULL))),
y AS (DELETE FROM millrace_sending WHERE id = ANY (ARRAY (SELECT id FROM x WHERE schedule IS NOT NULL)))
SELECT 'done', pos FROM x
UNION ALL SELECT 'awaiting', pos FROM x WHERE keep = 2
UNION ALL SELECT 'held', lane FROM l`

// pgGone is asked about what was not deleted: few rows, as a rule none.
const pgGone = `SELECT k.pos FROM unnest($1::text::bigint[], $2::text::text[]) AS k(pos, id)
	WHERE NOT EXISTS (SELECT 1 FROM millrace_outbox o WHERE o.pos = k.pos AND o.id = k.id)`

func (p *postgres) settle(ctx context.Context, grants []Grant, rows []Ref) (Settled, error) {
	var s Settled
	lanes, epochs := lanesAndEpochs(grants)
	held := make(map[int]bool, len(grants))
	args := []any{intArray(lanes), intArray(epochs), intArray(positions(rows)), textArray(ids(rows))}
	var kind string // out here, because they escape
	var n int64
	err := p.query(ctx, "settle", pgSettle, args, func(row txn.Scanner) error {
		if err := row.Scan(&kind, &n); err != nil {
			return err
		}
		switch kind {
		case "done":
			s.Done = append(s.Done, n)
		case "awaiting":
			s.awaiting = append(s.awaiting, n)
		default:
			held[int(n)] = true
		}
		return nil
	})
	if err != nil {
		return Settled{}, err
	}
	s.Lost = lost(grants, held)
	s.Gone = p.gone(ctx, rows, s.Done)
	p.bound.ended(s.Done) // where others are gone, there may be another row by now
	return s, nil
}

// gone returns which of the rows that were not deleted are not there. Without an answer it is none of them:
// what was done is done, and these are settled again.
func (p *postgres) gone(ctx context.Context, rows []Ref, done []int64) (gone []int64) {
	deleted := make(map[int64]bool, len(done))
	for _, pos := range done {
		deleted[pos] = true
	}
	var left []Ref
	for _, r := range rows {
		if !deleted[r.Pos] {
			left = append(left, r)
		}
	}
	if len(left) == 0 {
		return nil
	}
	err := p.query(ctx, "settle", pgGone, []any{intArray(positions(left)), textArray(ids(left))}, func(row txn.Scanner) error {
		var pos int64
		err := row.Scan(&pos)
		gone = append(gone, pos)
		return err
	})
	if err != nil {
		p.log.DebugContext(ctx, "outbox rows that were not settled are tried again", "error", err)
		return nil
	}
	return gone
}

func lost(grants []Grant, held map[int]bool) (lanes []int) {
	for _, g := range grants {
		if !held[g.Lane] {
			lanes = append(lanes, g.Lane)
		}
	}
	return lanes
}

const pgCalm = `UPDATE millrace_lanes SET crashes = 0
	WHERE (SELECT set_config('lock_timeout', '1s', true)) IS NOT NULL AND lane = $1 AND epoch = $2 AND crashes <> 0`

func (p *postgres) calm(ctx context.Context, g Grant) error {
	_, err := p.exec(ctx, "calm", pgCalm, g.Lane, g.Epoch)
	return err
}

const pgAttempt = `WITH ` + pgHeld + `
UPDATE millrace_outbox o SET attempts = o.attempts + 1 FROM l
WHERE o.lane = l.lane AND o.pos = $3::bigint AND o.id = $4 AND o.attempts = $5::int - 1`

func (p *postgres) attempt(ctx context.Context, g Grant, r Ref, attempt int) (bool, error) {
	n, err := p.exec(ctx, "attempt", pgAttempt, g.Lane, g.Epoch, r.Pos, r.ID, attempt)
	return n == 1, err
}

// A stop that is there already gives way: what failed last is what the key waits for.
const pgRefuse = `WITH ` + pgHeld + `,
u AS (
	UPDATE millrace_outbox o
	SET attempts = $5::int, ready = false, held = NULL, due_at = clock_timestamp() + $6::bigint * interval '1 microsecond'
	FROM l WHERE o.lane = l.lane AND o.pos = $3::bigint AND o.id = $4 AND o.attempts <= $5::int
	RETURNING o.lane, o.pos, o.id, o.order_key, o.due_at),
h AS (
	INSERT INTO millrace_history (id, event, attempt, destination, reason, error)
	SELECT id, 'refused', $5::int, $7::text, $9::text, $10::text FROM u WHERE $5::int <= ` + maxHistory + `),
s AS (
	INSERT INTO millrace_stops (lane, destination, order_key, pos, retry_at)
	SELECT lane, $7::text, order_key, pos, due_at FROM u WHERE $8::int = 1 AND order_key <> ''
	ON CONFLICT (lane, destination, order_key) DO UPDATE SET pos = excluded.pos, retry_at = excluded.retry_at)
SELECT count(*) FROM u`

func (p *postgres) refuse(ctx context.Context, g Grant, f Refused) (bool, error) {
	return p.counted(ctx, "refuse", pgRefuse,
		g.Lane, g.Epoch, f.Pos, f.ID, f.Attempt, micros(f.RetryIn), f.Destination, flag(f.Stop), f.Reason, f.Error)
}

// freeing runs a statement that makes rows ready, and answers with how many rows it found, or lanes, and how many it
// made ready. It does so again as long as these are as many as it may.
func (p *postgres) freeing(ctx context.Context, what, text string, args ...any) (ok bool, err error) {
	done := p.bound.lower()
	args = append(args, maxLifted)
	for more := true; more && err == nil; {
		var found, freed int
		err = p.query(ctx, what, text, args, func(row txn.Scanner) error { return row.Scan(&found, &freed) })
		ok, more = found == 1, freed == maxLifted
	}
	done(err)
	return ok && err == nil, err
}

// counted runs a statement that answers with how many rows it found, and how many lanes.
func (p *postgres) counted(ctx context.Context, what, text string, args ...any) (bool, error) {
	n := 0
	err := p.query(ctx, what, text, args, func(row txn.Scanner) error { return row.Scan(&n) })
	return n == 1, err
}

func flag(b bool) int {
	if b {
		return 1
	}
	return 0
}

// The stop is locked, so that it is not lifted between the look at it and the commit.
const pgHold = `WITH ` + pgHeld + `,
s AS MATERIALIZED (
	SELECT s.order_key, s.pos FROM millrace_stops s JOIN l ON l.lane = s.lane
	WHERE s.destination = $3 FOR SHARE OF s),
u AS (
	UPDATE millrace_outbox o SET ready = false, held = $3
	FROM unnest($4::text::bigint[], $5::text::text[]) AS k(pos, id), s
	WHERE o.lane = $1::int AND o.pos = k.pos AND o.id = k.id AND o.ready AND o.order_key = s.order_key AND o.pos > s.pos
	RETURNING 1)
SELECT (SELECT count(*) FROM l), (SELECT count(*) FROM u)`

func (p *postgres) hold(ctx context.Context, g Grant, destination string, rows []Ref) (bool, error) {
	var lanes, held int
	args := []any{g.Lane, g.Epoch, destination, intArray(positions(rows)), textArray(ids(rows))}
	err := p.query(ctx, "hold", pgHold, args, func(row txn.Scanner) error { return row.Scan(&lanes, &held) })
	return lanes == 1, err
}

// What a stop holds is set free from the bottom, and the stop removed with the last of it: as long as it is there, nothing
// that is published meanwhile overtakes what is held yet, whoever holds the lane. $5 is the most that one statement sets free.
const pgLift = `WITH ` + pgHeld + `,
d AS MATERIALIZED (
	SELECT o.pos FROM l JOIN millrace_outbox o ON o.lane = l.lane
	WHERE o.held = $3 AND o.order_key = $4 ORDER BY o.pos LIMIT $5::int FOR UPDATE OF o),
u AS (UPDATE millrace_outbox SET ready = true, held = NULL WHERE pos = ANY (ARRAY (SELECT pos FROM d))),
s AS (
	DELETE FROM millrace_stops s USING l
	WHERE s.lane = l.lane AND s.destination = $3 AND s.order_key = $4 AND (SELECT count(*) FROM d) < $5::int)
SELECT (SELECT count(*) FROM l), (SELECT count(*) FROM d)`

func (p *postgres) lift(ctx context.Context, g Grant, destination, key string) (bool, error) {
	return p.freeing(ctx, "lift", pgLift, g.Lane, g.Epoch, destination, key)
}

// The message is parked when all that its stops hold is free, $9 rows in one statement.
const pgPark = `WITH ` + pgHeld + `,
k AS MATERIALIZED (
	SELECT s.destination, s.order_key FROM l JOIN millrace_outbox o ON o.lane = l.lane AND o.pos = $3::bigint AND o.id = $4
	JOIN millrace_stops s ON s.lane = l.lane AND s.order_key = o.order_key AND s.pos = o.pos),
f AS MATERIALIZED (
	SELECT o.pos FROM k JOIN millrace_outbox o ON o.lane = $1::int AND o.held = k.destination AND o.order_key = k.order_key
	ORDER BY o.pos LIMIT $9::int FOR UPDATE OF o),
u AS (UPDATE millrace_outbox SET ready = true, held = NULL WHERE pos = ANY (ARRAY (SELECT pos FROM f))),
x AS (
	DELETE FROM millrace_outbox o USING l
	WHERE o.lane = l.lane AND o.pos = $3::bigint AND o.id = $4 AND (SELECT count(*) FROM f) < $9::int
	RETURNING o.*),
d AS (
	INSERT INTO millrace_dead (pos, id, lane, topic, order_key, destination, reason, error, attempts, keep, keep_us, plan, size, metadata, payload, created_at)
	SELECT pos, id, lane, topic, order_key, $5::text, $6::text, $7::text, greatest(attempts, $8::int), keep, keep_us, plan, size, metadata, payload, created_at
	FROM x),
h AS (
	INSERT INTO millrace_history (id, event, attempt, destination, reason, error)
	SELECT id, 'parked', greatest(attempts, $8::int), $5::text, $6::text, $7::text FROM x),
n AS (DELETE FROM millrace_schedules WHERE id = ANY (ARRAY (SELECT id FROM x WHERE schedule IS NOT NULL))),
y AS (DELETE FROM millrace_sending WHERE id = ANY (ARRAY (SELECT id FROM x WHERE schedule IS NOT NULL))),
s AS (DELETE FROM millrace_stops s USING x WHERE s.lane = x.lane AND s.order_key = x.order_key AND s.pos = x.pos)
SELECT (SELECT count(*) FROM x), (SELECT count(*) FROM f)`

func (p *postgres) park(ctx context.Context, g Grant, f Refused) (bool, error) {
	return p.freeing(ctx, "park", pgPark,
		g.Lane, g.Epoch, f.Pos, f.ID, f.Destination, f.Reason, f.Error, f.Attempt)
}
