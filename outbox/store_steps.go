package outbox

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/millrace-go/millrace/internal/txn"
)

// steps is the store on databases that cannot write several tables in one statement: an operation is
// one short transaction, which first locks the rows of the lanes whose epoch it relies on. A look at
// them without a lock would see a snapshot, and pass although the lane was taken over meanwhile.
//
// What is given up may go on in the database beside what its caller does next, so nobody may come into the way of
// himself either. All lock lanes first and in their order: those that stop, hold and set free the keys of a lane lock it
// alone, the others share it. Rows of the outbox are locked by position and not waited for, but for one that is all
// that is wanted.
type steps struct {
	*sqlStore
	// share locks lanes that are read against changes, alone locks them for a change, skip locks rows for a change and
	// passes over those that somebody else has locked.
	share, alone, skip string
	// both is two queries in one, the second of which is to see, and lock, what is there when the first has its locks.
	both string
	// enter and exit, if set, begin and end each transaction, on a connection that is lent.
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

// errLocked says that somebody outside of the store has locked rows, as who cancels a message.
var errLocked = errors.New("somebody else has locked a message")

// lockAll locks rows, or fails if somebody else has locked one of them.
func (s *steps) lockAll(ctx context.Context, q txn.Querier, pos []int64) (map[int64]place, error) {
	locked, err := s.find(ctx, q, pos, s.skip)
	if err != nil || len(locked) == len(pos) {
		return locked, err
	}
	there, err := s.find(ctx, q, pos, "")
	if err == nil && len(there) > len(locked) {
		err = errLocked
	}
	return locked, err
}

// changeAll changes rows, or none if somebody else has locked one of them. Set is in the words of the database.
func (s *steps) changeAll(ctx context.Context, q txn.Querier, set, where string, pos []int64, args ...any) error {
	if len(pos) == 0 {
		return nil
	}
	_, err := s.lockAll(ctx, q, pos)
	if err == nil {
		_, err = q.Exec(ctx, s.changeAt(set, where, pos), args...)
	}
	return err
}

// changeFree changes those rows that nobody else has locked, and reports how many.
func (s *steps) changeFree(ctx context.Context, q txn.Querier, set, where string, pos []int64) (int, error) {
	free, err := s.find(ctx, q, pos, s.skip)
	if err != nil || len(free) == 0 {
		return 0, err
	}
	n, err := q.Exec(ctx, s.changeAt(set, where, slices.Sorted(maps.Keys(free))))
	return int(n), err
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
	if s.enter == "" {
		return txn.Atomic(ctx, s.pool, txn.Options{}, fn)
	}
	lender, ok := s.pool.(txn.Lender)
	if !ok {
		return fmt.Errorf("%w: this database handle lends no connections", txn.ErrUnsupported)
	}
	return lender.Lend(ctx, s.enter, func(q txn.Querier) (clean bool, err error) {
		err = fn(q)
		// Whatever became of ctx, the connection goes back as it came, or is closed.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveTimeout)
		defer cancel()
		if err == nil {
			_, err = q.Exec(ctx, s.exit)
			return err == nil, err
		}
		_, left := q.Exec(ctx, "ROLLBACK")
		if left == nil {
			_, left = q.Exec(ctx, s.exit)
		}
		return left == nil, err
	})
}

// under runs fn in a transaction if the grant's lane is still held, and reports whether it was and fn
// found what it looked for.
func (s *steps) under(ctx context.Context, g Grant, fn func(q txn.Querier) (bool, error)) (ok bool, err error) {
	err = s.atomic(ctx, func(q txn.Querier) error {
		held, err := s.held(ctx, q, []Grant{g}, s.alone)
		if err != nil || !held[g.Lane] {
			return err
		}
		ok, err = fn(q)
		return err
	})
	return ok && err == nil, err
}

// held locks the lanes of the grants, in order, and tells which are still held.
func (s *steps) held(ctx context.Context, q txn.Querier, grants []Grant, lock string) (map[int]bool, error) {
	lanes, epochs := epochsOf(grants)
	held := make(map[int]bool, len(grants))
	if len(lanes) == 0 {
		return held, nil
	}
	query := s.lanes(`lane, epoch`, lanes) + lock
	err := q.Query(ctx, query, nil, func(row txn.Scanner) error {
		var lane int
		var epoch int64
		err := row.Scan(&lane, &epoch)
		held[lane] = epochs[lane] == epoch
		return err
	})
	return held, err
}

// lanes is a query of lanes. By their index: on the way through the table, it would wait for others.
func (s *steps) lanes(columns string, lanes []int) string {
	return s.plain(`SELECT ` + columns + ` {from millrace_lanes PRIMARY} WHERE lane IN (` + list(lanes) + `)`)
}

func epochsOf(grants []Grant) (lanes []int, epochs map[int]int64) {
	epochs = make(map[int]int64, len(grants))
	for _, g := range grants {
		epochs[g.Lane] = g.Epoch
		lanes = append(lanes, g.Lane)
	}
	return lanes, epochs
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
		for i, g := range free { // one by one: of many lanes, MySQL would look through all, and wait for those of others
			if _, err := s.run(ctx, q, `UPDATE millrace_lanes
				SET crashes = crashes + CASE WHEN owner IS NULL THEN 0 ELSE 1 END, owner = $1, epoch = epoch + 1
				WHERE lane = $2`, replica, g.Lane); err != nil {
				return err
			}
			free[i].Epoch++
		}
		grants = free
		return nil
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
		_, err := q.Exec(ctx, s.plain(`{update millrace_lanes PRIMARY} SET owner = NULL WHERE lane IN (`+list(lanes)+`) AND CASE lane`+held.String()+` END`))
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
