package outbox

import (
	"context"
	"slices"
	"strings"

	"github.com/millrace-go/millrace/internal/dberr"
	"github.com/millrace-go/millrace/internal/txn"
)

// Nearly all that is settled is deleted, and nothing more: pgDelete does that alone. What it does not delete, because
// it is to be remembered, or has a name, or somebody else has it locked, is left to pgSettle.

// $3 positions, $4 ids, $5 how many.
// It waits for locks, which pgSettle passes over, but not for long: the first one that takes long fails it. A row that
// was changed meanwhile is deleted as it is by then, still the same message.
// The lanes are compared through a hash. The answer is one row, which names what was deleted only if that is not all.
var pgDelete = `WITH ` + strings.Replace(pgAllHeld, `'1s'`, `'20ms'`, 1) + `,
x AS (
	DELETE FROM millrace_outbox o {named} AND o.keep = 0 AND o.schedule IS NULL
	  AND CASE WHEN o.lane IN (SELECT lane FROM l) THEN true ELSE false END
	RETURNING o.pos)
SELECT ` + pgDeleted + `, '{}', ARRAY (SELECT lane FROM l)::text`

// The two ways to find the rows that are named. One walks ($6, $7) from the lowest to the highest and compares through a hash; if
// most of what lies there is named, that takes three quarters of what the other takes, which searches for each by its
// position: with = for the ids, too, the planner takes their index for as good, whose entries lie all over it, and
// each of whose comparisons is one of texts. It is not to know how many are named, or it reads a small table from end to
// end, and plans anew each time.
const (
	pgKeys  = `unnest((SELECT $3::text::bigint[]), (SELECT $4::text::text[])) AS k(pos, id)`
	pgWalk  = `WHERE o.pos >= (SELECT $6::bigint) AND o.pos <= (SELECT $7::bigint) AND CASE WHEN (o.pos, o.id) IN (SELECT k.pos, k.id FROM ` + pgKeys + `) THEN true ELSE false END`
	pgProbe = `USING ` + pgKeys + ` WHERE o.pos = k.pos AND o.id IS NOT DISTINCT FROM k.id`
)

// mostWalked is how many positions a walk may pass for each that is named.
const mostWalked = 3

func deleteText(named string) string { return strings.Replace(pgDelete, "{named}", named, 1) }

// stretchOf returns the lowest and the highest position of rows, and whether what lies between is worth a walk.
func stretchOf(rows []Ref) (lowest, highest int64, walk bool) {
	at := positions(rows)
	lowest, highest = slices.Min(at), slices.Max(at)
	return lowest, highest, highest-lowest < int64(mostWalked*len(rows))
}

const pgDeleted = `(SELECT count(*) FROM x), ARRAY (SELECT pos FROM x WHERE (SELECT count(*) FROM x) < $5::int)::text`

// As in pgDelete. A row is searched for once: it is deleted by its place in the table, which it keeps
// because it is locked. One that was changed since the statement began has another place than this statement
// sees, and one that somebody else has locked is passed over: neither is deleted, and both are tried again.
// The names deleted are compared with an array: a join could read all of them.
// What is to be remembered moves to the table of sent messages; the others do not carry their payload along.
const pgSettle = `WITH ` + pgAllHeld + `,
d AS MATERIALIZED (
	SELECT o.ctid FROM unnest($3::text::bigint[], $4::text::text[]) AS k(pos, id)
	JOIN millrace_outbox o ON o.pos = k.pos AND o.id IS NOT DISTINCT FROM k.id
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
SELECT ` + pgDeleted + `, ARRAY (SELECT pos FROM x WHERE keep = 2)::text, ARRAY (SELECT lane FROM l)::text`

// pgGone is asked about what was not deleted: few rows, as a rule none.
const pgGone = `SELECT k.pos FROM unnest($1::text::bigint[], $2::text::text[]) AS k(pos, id)
	WHERE NOT EXISTS (SELECT 1 FROM millrace_outbox o WHERE o.pos = k.pos AND o.id = k.id)`

func (p *postgres) settle(ctx context.Context, grants []Grant, rows []Ref) (Settled, error) {
	s, err := p.settlePlain(ctx, grants, rows)
	if err != nil {
		return Settled{}, err
	}
	if left := without(rows, s.Done); len(left) > 0 || len(rows) == 0 {
		more, err := p.settleBy(ctx, pgSettle, grants, left)
		switch {
		case err == nil:
			s = Settled{Lost: more.Lost, Done: append(s.Done, more.Done...), awaiting: more.awaiting}
			s.Gone = p.gone(ctx, without(left, more.Done))
		case len(s.Done) == 0:
			return Settled{}, err
		} // else what was done is done, and the others are settled again
	}
	p.bound.ended(s.Done) // where others are gone, there may be another row by now
	return s, nil
}

// settlePlain deletes what pgDelete can, which is nothing if a lock cannot be had.
func (p *postgres) settlePlain(ctx context.Context, grants []Grant, rows []Ref) (Settled, error) {
	if len(rows) == 0 || !p.plain.worth() {
		return Settled{}, nil
	}
	text, ends := deleteText(pgProbe), []any(nil)
	if lowest, highest, walk := stretchOf(rows); walk {
		text, ends = deleteText(pgWalk), []any{lowest, highest}
	}
	s, err := p.settleBy(ctx, text, grants, rows, ends...)
	if dberr.SQLState(err) == lockNotAvailable {
		err = nil
	}
	if err == nil && len(s.Done) <= len(rows)/2 {
		p.plain.failed()
	}
	return s, err
}

// lockNotAvailable is the SQLSTATE of a lock that could not be had in time.
const lockNotAvailable = "55P03"

func (p *postgres) settleBy(ctx context.Context, text string, grants []Grant, rows []Ref, more ...any) (s Settled, err error) {
	lanes, epochs := lanesAndEpochs(grants)
	args := []any{intArray(lanes), intArray(epochs), intArray(positions(rows)), textArray(ids(rows)), len(rows)}
	err = p.query(ctx, "settle", text, append(args, more...), func(row txn.Scanner) error {
		var n int
		var done, awaiting, held string
		if err := row.Scan(&n, &done, &awaiting, &held); err != nil {
			return err
		}
		if s.Done = positions(rows); n < len(rows) {
			s.Done = parseIntArray[int64](done)
		}
		s.awaiting = parseIntArray[int64](awaiting)
		locked := make(map[int]bool, len(grants))
		for _, lane := range parseIntArray[int](held) {
			locked[lane] = true
		}
		s.Lost = lost(grants, locked)
		return nil
	})
	return s, err
}

// without is rows but for those at some positions.
func without(rows []Ref, positions []int64) (left []Ref) {
	if len(positions) == len(rows) {
		return nil
	}
	gone := make(map[int64]bool, len(positions))
	for _, pos := range positions {
		gone[pos] = true
	}
	return slices.DeleteFunc(slices.Clone(rows), func(r Ref) bool { return gone[r.Pos] })
}

// gone returns which of the rows that were not deleted are not there. Without an answer it is none of them:
// what was done is done, and these are settled again.
func (p *postgres) gone(ctx context.Context, left []Ref) (gone []int64) {
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
