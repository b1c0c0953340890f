package outbox

import (
	"context"
	"fmt"

	"github.com/millrace-go/millrace/internal/txn"
)

// settle implements dialect. What is deleted has been locked before, so the answer is exact.
func (s *steps) settle(ctx context.Context, grants []Grant, rows []Ref) (Settled, error) {
	var v Settled
	err := s.atomic(ctx, func(q txn.Querier) error {
		held, free, err := s.heldAndFree(ctx, q, grants, positions(rows))
		if err != nil {
			return err
		}
		v = Settled{Lost: lost(grants, held)}
		var done, others []Ref
		for _, r := range rows {
			switch f := free[r.Pos]; {
			case f.id != r.ID:
				others = append(others, r)
			case held[f.lane]:
				done = append(done, r)
			}
		}
		if v.Gone, err = s.gone(ctx, q, others); err != nil || len(done) == 0 {
			return err
		}
		v.Done = positions(done)
		for _, r := range done {
			if After(free[r.Pos].keep) == AwaitConfirmation {
				v.awaiting = append(v.awaiting, r.Pos)
			}
		}
		return s.finish(ctx, q, done, free)
	})
	if err != nil {
		return Settled{}, err
	}
	return v, nil
}

// heldAndFree is held, and find for those rows that nobody else has locked.
func (s *steps) heldAndFree(ctx context.Context, q txn.Querier, grants []Grant, pos []int64) (map[int]bool, map[int64]place, error) {
	lanes, epochs := epochsOf(grants)
	held, free := make(map[int]bool, len(grants)), make(map[int64]place, len(pos))
	query := fmt.Sprintf(s.both,
		s.lanes(`0, lane, epoch, '', 0, 0`, lanes)+s.share,
		s.pickAt(`1, o.pos, o.lane, o.id, o.keep, o.schedule IS NOT NULL`, pos, s.skip))
	err := q.Query(ctx, query, nil, func(row txn.Scanner) error {
		var isRow bool
		var n, m int64
		var p place
		err := row.Scan(&isRow, &n, &m, &p.id, &p.keep, &p.named)
		if isRow {
			p.lane = int(m)
			free[n] = p
		} else {
			held[int(n)] = epochs[int(n)] == m
		}
		return err
	})
	return held, free, err
}

// finish deletes rows that are locked, and moves what is to be remembered.
func (s *steps) finish(ctx context.Context, q txn.Querier, done []Ref, places map[int64]place) error {
	var kept, named []int64
	for _, r := range done {
		if places[r.Pos].keep > 0 {
			kept = append(kept, r.Pos)
		}
		if places[r.Pos].named {
			named = append(named, r.Pos)
		}
	}
	if len(kept) > 0 {
		if _, err := q.Exec(ctx, s.plain(`INSERT INTO millrace_sent (pos, id, lane, topic, order_key, keep, keep_us, plan,
				size, metadata, payload, created_at, sent_at, due_at, expires_at)
			SELECT pos, id, lane, topic, order_key, keep, COALESCE(keep_us, 0), plan, size, metadata, payload, created_at, {now},
				CASE WHEN keep = 2 THEN {after keep_us} END, CASE WHEN keep = 1 THEN {after keep_us} END
			FROM millrace_outbox WHERE pos IN (`+list(kept)+`)`)); err != nil {
			return err
		}
	}
	if len(named) > 0 {
		if err := s.unnameAll(ctx, q, named); err != nil {
			return err
		}
	}
	_, err := q.Exec(ctx, s.eraseAt(positions(done)))
	return err
}

// unnameAll deletes the names of rows, and the notes that these are being sent.
func (s *steps) unnameAll(ctx context.Context, q txn.Querier, pos []int64) error {
	for _, text := range []string{s.unname, s.forget} {
		if _, err := q.Exec(ctx, rename(fmt.Sprintf(text, list(pos)), s.prefix)); err != nil {
			return err
		}
	}
	return nil
}

// gone lists the positions at which there is no row of that id, locked or not.
func (s *steps) gone(ctx context.Context, q txn.Querier, rows []Ref) (gone []int64, err error) {
	if len(rows) == 0 {
		return nil, nil
	}
	there, err := s.find(ctx, q, positions(rows), "")
	for _, r := range rows {
		if there[r.Pos].id != r.ID {
			gone = append(gone, r.Pos)
		}
	}
	return gone, err
}

type place struct {
	id    string
	lane  int
	keep  int
	named bool
}

// find looks rows up by position.
func (s *steps) find(ctx context.Context, q txn.Querier, pos []int64, lock string) (map[int64]place, error) {
	found := make(map[int64]place, len(pos))
	query := s.pickAt(`o.pos, o.id, o.lane, o.keep, o.schedule IS NOT NULL`, pos, lock)
	err := q.Query(ctx, query, nil, func(row txn.Scanner) error {
		var at int64
		var p place
		err := row.Scan(&at, &p.id, &p.lane, &p.keep, &p.named)
		found[at] = p
		return err
	})
	return found, err
}
