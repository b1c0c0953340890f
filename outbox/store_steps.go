package outbox

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/millrace-go/millrace/internal/txn"
)

// steps is the store on databases that cannot write several tables in one statement: an operation is
// one short transaction, which first locks the rows of the lanes whose epoch it relies on. A look at
// them without a lock would see a snapshot, and pass although the lane was taken over meanwhile.
type steps struct {
	*sqlStore
	// options are those of each transaction.
	options txn.Options
	// share locks rows that are read against changes, skip locks them for a change and passes over
	// those that somebody else has locked.
	share, skip string
	// enter and exit, if set, are run at the ends of each transaction. Exit commits it as well.
	enter, exit string
	// waiting is a query of what waits in lanes with these live stops: rows of what it is (waitsDue, waitsHeld or
	// waitsConfirmation), the lane, the microseconds until the earliest is due, a destination and a key.
	// Of keys that are held it names at least one that has no live stop, if there is one.
	waiting func(lanes []int, stops []Stop) string
	byPosition
}

// byPosition are statements about rows o of the outbox that are named by position, and touch no other:
// %s are what to select or to set, a condition, and the positions.
type byPosition struct {
	pick, change, erase string
	// names selects the ids of the rows whose names are there, take notes that these are being sent, unname
	// deletes the names, and forget the notes. %s are the positions.
	names, take, unname, forget string
}

// pickAt is a query of rows by position.
func (s *steps) pickAt(columns string, pos []int64, lock string) string {
	return rename(fmt.Sprintf(s.pick, columns, list(pos)), s.prefix) + lock
}

// changeAt changes rows by position.
func (s *steps) changeAt(set, where string, pos []int64) string {
	return rename(fmt.Sprintf(s.change, set, where, list(pos)), s.prefix)
}

// eraseAt deletes rows by position.
func (s *steps) eraseAt(pos []int64) string {
	return rename(fmt.Sprintf(s.erase, list(pos)), s.prefix)
}

// topics implements dialect.
func (s *steps) topics(ctx context.Context) (Topics, error) { return s.hop(ctx) }

// tag implements dialect: these databases plan each statement anew.
func (s *steps) tag(context.Context) string { return "" }

// leaveTimeout is how long the end of a transaction may take.
const leaveTimeout = 10 * time.Second

// atomic runs fn in a transaction.
func (s *steps) atomic(ctx context.Context, fn func(q txn.Querier) error) error {
	return txn.Atomic(ctx, s.pool, s.options, func(q txn.Querier) error {
		if s.enter == "" {
			return fn(q)
		}
		_, err := q.Exec(ctx, s.enter)
		if err == nil {
			err = fn(q)
		}
		// Whatever became of ctx, the connection goes back as it came, or is closed.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveTimeout)
		defer cancel()
		if err == nil {
			_, err = q.Exec(ctx, s.exit)
		}
		if err != nil {
			_, _ = q.Exec(ctx, "ROLLBACK")
			_, _ = q.Exec(ctx, s.exit)
		}
		return err
	})
}

// under runs fn in a transaction if the grant's lane is still held, and reports whether it was and fn
// found what it looked for.
func (s *steps) under(ctx context.Context, g Grant, fn func(q txn.Querier) (bool, error)) (ok bool, err error) {
	err = s.atomic(ctx, func(q txn.Querier) error {
		held, err := s.held(ctx, q, []Grant{g})
		if err != nil || !held[g.Lane] {
			return err
		}
		ok, err = fn(q)
		return err
	})
	return ok && err == nil, err
}

// held locks the lanes of the grants, in order, and tells which are still held.
func (s *steps) held(ctx context.Context, q txn.Querier, grants []Grant) (map[int]bool, error) {
	epochs := make(map[int]int64, len(grants))
	lanes := make([]int, 0, len(grants))
	for _, g := range grants {
		epochs[g.Lane] = g.Epoch
		lanes = append(lanes, g.Lane)
	}
	held := make(map[int]bool, len(grants))
	if len(lanes) == 0 {
		return held, nil
	}
	query := rename(`SELECT lane, epoch FROM millrace_lanes WHERE lane IN (`+list(lanes)+`) ORDER BY lane`, s.prefix) + s.share
	err := q.Query(ctx, query, nil, func(row txn.Scanner) error {
		var lane int
		var epoch int64
		err := row.Scan(&lane, &epoch)
		held[lane] = epochs[lane] == epoch
		return err
	})
	return held, err
}

// run executes a statement in the common form.
func (s *steps) run(ctx context.Context, q txn.Querier, common string, args ...any) (int64, error) {
	return q.Exec(ctx, s.text(common), args...)
}

// list is numbers for an IN (...). It is never empty: a null is equal to nothing.
func list[T ~int | ~int64](values []T) string {
	if len(values) == 0 {
		return "null"
	}
	var b strings.Builder
	for i, v := range values {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.FormatInt(int64(v), 10))
	}
	return b.String()
}

// claim implements dialect.
func (s *steps) claim(ctx context.Context, replica string, n int) ([]Grant, error) {
	var grants []Grant
	err := s.atomic(ctx, func(q txn.Querier) error {
		free, err := s.free(ctx, q, replica, n)
		if err != nil {
			return err
		}
		lanes := make([]int, len(free))
		for i, g := range free {
			lanes[i] = g.Lane
			free[i].Epoch++
		}
		grants = free
		_, err = q.Exec(ctx, s.plain(`UPDATE millrace_lanes
			SET crashes = crashes + CASE WHEN owner IS NULL THEN 0 ELSE 1 END, owner = $1, epoch = epoch + 1
			WHERE lane IN (`+list(lanes)+`)`), replica)
		return err
	})
	return grants, err
}

// free locks free lanes, and lists them as they will be when they have been taken, but for the epoch.
// One that a settle still has locked, maybe of a process that is frozen, does not keep the others from
// being taken.
//
// A statement that locks reads the lanes as they are now, and the forwarders as they were when it
// began: the lanes of one that has come since look free to it. Who they belong to is asked once more
// when they are locked.
func (s *steps) free(ctx context.Context, q txn.Querier, replica string, n int) (free []Grant, err error) {
	owners := map[int]string{}
	err = q.Query(ctx, s.text(`SELECT l.lane, l.epoch, l.crashes + CASE WHEN l.owner IS NULL THEN 0 ELSE 1 END, COALESCE(l.owner, '')
		FROM millrace_lanes l
		WHERE NOT EXISTS (SELECT 1 FROM millrace_forwarders f WHERE f.id = l.owner)
		ORDER BY l.lane LIMIT $1`)+s.skip, []any{n}, func(row txn.Scanner) error {
		var g Grant
		var owner string
		err := row.Scan(&g.Lane, &g.Epoch, &g.Crashes, &owner)
		free, owners[g.Lane] = append(free, g), owner
		return err
	})
	if err != nil || len(free) == 0 {
		return nil, err
	}
	registered := map[string]bool{}
	err = q.Query(ctx, s.text(`SELECT id FROM millrace_forwarders`), nil, func(row txn.Scanner) error {
		var id string
		err := row.Scan(&id)
		registered[id] = true
		return err
	})
	if err != nil || !registered[replica] {
		return nil, err
	}
	return slices.DeleteFunc(free, func(g Grant) bool { return registered[owners[g.Lane]] }), nil
}

// release locks the lanes in their order, as leave does: one that was given up may be under way yet.
func (s *steps) release(ctx context.Context, grants []Grant) error {
	lanes := make([]int, len(grants))
	var held strings.Builder
	for i, g := range grants {
		lanes[i] = g.Lane
		fmt.Fprintf(&held, " WHEN %d THEN epoch = %d", g.Lane, g.Epoch)
	}
	return s.atomic(ctx, func(q txn.Querier) error {
		_, err := q.Exec(ctx, s.plain(`UPDATE millrace_lanes SET owner = NULL WHERE lane IN (`+list(lanes)+`) AND CASE lane`+held.String()+` END`))
		return err
	})
}

func (s *steps) leave(ctx context.Context, replica string) error {
	return s.atomic(ctx, func(q txn.Querier) error {
		if _, err := s.run(ctx, q, `UPDATE millrace_lanes SET owner = NULL WHERE owner = $1`, replica); err != nil {
			return err
		}
		_, err := s.run(ctx, q, `DELETE FROM millrace_forwarders WHERE id = $1`, replica)
		return err
	})
}

func (s *steps) stops(ctx context.Context, lanes []int) ([]Stop, error) {
	// No join, and no EXISTS: it could read the whole table.
	query := s.plain(`SELECT s.lane, s.destination, s.order_key, s.pos FROM millrace_stops s
		WHERE s.lane IN (` + list(lanes) + `) AND (SELECT 1 {from millrace_outbox PRIMARY} WHERE millrace_outbox.pos = s.pos) = 1`)
	return scanStops(func(row func(txn.Scanner) error) error { return s.pool.Query(ctx, query, nil, row) })
}

// settle implements dialect. What is deleted has been locked before, so the answer is exact.
func (s *steps) settle(ctx context.Context, grants []Grant, rows []Ref) (Settled, error) {
	var v Settled
	err := s.atomic(ctx, func(q txn.Querier) error {
		held, err := s.held(ctx, q, grants)
		if err != nil {
			return err
		}
		v = Settled{Lost: lost(grants, held)}
		free, err := s.find(ctx, q, positions(rows), s.skip)
		if err != nil {
			return err
		}
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
		for _, text := range []string{s.unname, s.forget} {
			if _, err := q.Exec(ctx, rename(fmt.Sprintf(text, list(named)), s.prefix)); err != nil {
				return err
			}
		}
	}
	_, err := q.Exec(ctx, s.eraseAt(positions(done)))
	return err
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
