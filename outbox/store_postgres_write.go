package outbox

import (
	"context"

	"github.com/millrace-go/millrace/internal/txn"
)

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
// that is published meanwhile overtakes what is held yet, whoever holds the lane. One statement sets maxLifted free: the
// number stands in the text, and they are found in the index alone, or the planner walks over all that was set free before.
const pgLift = `WITH ` + pgHeld + `,
d AS MATERIALIZED (
	SELECT x.pos FROM l CROSS JOIN LATERAL (
		SELECT pos FROM millrace_outbox o WHERE o.lane = l.lane AND o.held = $3 AND o.order_key = $4 ORDER BY pos LIMIT 1000) x),
k AS MATERIALIZED (
	SELECT pos FROM millrace_outbox WHERE pos = ANY (ARRAY (SELECT pos FROM d)) AND held = $3 ORDER BY pos FOR UPDATE),
u AS (UPDATE millrace_outbox SET ready = true, held = NULL WHERE pos = ANY (ARRAY (SELECT pos FROM k))),
s AS (
	DELETE FROM millrace_stops s USING l
	WHERE s.lane = l.lane AND s.destination = $3 AND s.order_key = $4 AND (SELECT count(*) FROM d) < 1000)
SELECT (SELECT count(*) FROM l), (SELECT count(*) FROM d)`

func (p *postgres) lift(ctx context.Context, g Grant, destination, key string) (bool, error) {
	return p.freeing(ctx, "lift", pgLift, g.Lane, g.Epoch, destination, key)
}

// The message is parked when all that its stops hold is free, 1000 rows in one statement, as in pgLift.
const pgPark = `WITH ` + pgHeld + `,
k AS MATERIALIZED (
	SELECT s.destination, s.order_key FROM l JOIN millrace_outbox o ON o.lane = l.lane AND o.pos = $3::bigint AND o.id = $4
	JOIN millrace_stops s ON s.lane = l.lane AND s.order_key = o.order_key AND s.pos = o.pos),
f AS MATERIALIZED (
	SELECT x.pos FROM k CROSS JOIN LATERAL (
		SELECT pos FROM millrace_outbox o WHERE o.lane = $1::int AND o.held = k.destination AND o.order_key = k.order_key
		ORDER BY pos LIMIT 1000) x
	ORDER BY x.pos LIMIT 1000),
g AS MATERIALIZED (
	SELECT pos FROM millrace_outbox WHERE pos = ANY (ARRAY (SELECT pos FROM f)) AND held IS NOT NULL ORDER BY pos FOR UPDATE),
u AS (UPDATE millrace_outbox SET ready = true, held = NULL WHERE pos = ANY (ARRAY (SELECT pos FROM g))),
x AS (
	DELETE FROM millrace_outbox o USING l
	WHERE o.lane = l.lane AND o.pos = $3::bigint AND o.id = $4 AND (SELECT count(*) FROM f) < 1000
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
