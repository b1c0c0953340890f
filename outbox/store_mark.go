package outbox

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/millrace-go/millrace/internal/txn"
)

// A message with a schedule name is published only after its name was taken from it: who cancels and
// who marks want the same row of the names, and one of them gets it.

// $3 positions, $4 ids. A name that somebody has locked may be about to be cancelled. A message whose
// name is not there cannot be: it was marked before.
const pgMark = `WITH ` + pgAllHeld + `,
k AS MATERIALIZED (
	SELECT o.pos, o.id FROM unnest($3::text::bigint[], $4::text::text[]) AS k(pos, id)
	JOIN millrace_outbox o ON o.pos = k.pos AND o.id = k.id WHERE o.lane IN (SELECT lane FROM l)),
s AS MATERIALIZED (
	SELECT s.name, s.id, k.pos FROM k JOIN millrace_schedules s ON s.id = k.id
	ORDER BY s.name FOR UPDATE OF s SKIP LOCKED),
x AS (DELETE FROM millrace_schedules m USING s WHERE m.name = s.name),
i AS (INSERT INTO millrace_sending (id, name) SELECT id, name FROM s ON CONFLICT DO NOTHING)
SELECT pos FROM s
UNION ALL SELECT k.pos FROM k WHERE NOT EXISTS (SELECT 1 FROM millrace_schedules s WHERE s.id = k.id)`

func (p *postgres) mark(ctx context.Context, grants []Grant, rows []Ref) (marked []int64, err error) {
	lanes, epochs := lanesAndEpochs(grants)
	args := []any{intArray(lanes), intArray(epochs), intArray(positions(rows)), textArray(ids(rows))}
	err = p.query(ctx, "mark", pgMark, args, func(row txn.Scanner) error {
		var pos int64
		err := row.Scan(&pos)
		marked = append(marked, pos)
		return err
	})
	return marked, err
}

func (s *steps) mark(ctx context.Context, grants []Grant, rows []Ref) ([]int64, error) {
	var marked []int64
	err := s.atomic(ctx, func(q txn.Querier) error {
		marked = nil
		held, err := s.held(ctx, q, grants, s.share)
		if err != nil {
			return err
		}
		taken, err := s.takeNames(ctx, q, rows)
		if err != nil {
			return err
		}
		named, err := s.named(ctx, q, rows)
		if err != nil {
			return err
		}
		for _, r := range rows {
			name, there := named[r.Pos]
			if !there || name.id != r.ID || !held[name.lane] || name.there && !taken[r.ID] {
				continue
			}
			marked = append(marked, r.Pos)
		}
		if len(marked) == 0 {
			return nil
		}
		for _, text := range []string{s.take, s.unname} {
			if _, err := q.Exec(ctx, rename(fmt.Sprintf(text, list(marked)), s.prefix)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return marked, nil
}

// takeNames locks the names of the rows, but for those that somebody else has locked.
func (s *steps) takeNames(ctx context.Context, q txn.Querier, rows []Ref) (map[string]bool, error) {
	taken := make(map[string]bool, len(rows))
	query := rename(fmt.Sprintf(s.names, list(positions(rows))), s.prefix) + s.skip
	err := q.Query(ctx, query, nil, func(row txn.Scanner) error {
		var id string
		err := row.Scan(&id)
		taken[id] = true
		return err
	})
	return taken, err
}

// named tells of rows whether they have a name.
func (s *steps) named(ctx context.Context, q txn.Querier, rows []Ref) (map[int64]namedPlace, error) {
	found := make(map[int64]namedPlace, len(rows))
	named := rename(`EXISTS (SELECT 1 FROM millrace_schedules s WHERE s.id = o.id)`, s.prefix)
	err := q.Query(ctx, s.pickAt(`o.pos, o.id, o.lane, `+named, positions(rows), ``), nil, func(row txn.Scanner) error {
		var pos int64
		var p namedPlace
		err := row.Scan(&pos, &p.id, &p.lane, &p.there)
		found[pos] = p
		return err
	})
	return found, err
}

type namedPlace struct {
	id    string
	lane  int
	there bool // its name
}

// plain is a statement in the common form that is not worth remembering.
func (s *steps) plain(common string) string { return s.found.translate(rename(common, s.prefix)) }

// params is $1,$2, ... for an IN (...). There is at least one.
func params(n int) string {
	var b strings.Builder
	for i := range max(n, 1) {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteByte('$')
		b.WriteString(strconv.Itoa(i + 1))
	}
	return b.String()
}

func anyOf[T any](values []T) []any {
	out := make([]any, len(values))
	for i, v := range values {
		out[i] = v
	}
	return out
}
