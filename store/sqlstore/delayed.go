package sqlstore

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/millrace-go/millrace/internal/txn"
	"github.com/millrace-go/millrace/store"
	"github.com/millrace-go/millrace/store/internal/form"
)

// Admit implements store.Delayed. For a message of which nothing is stored it is one look, without a
// lock: what it has to see was committed before the message was delivered.
func (s *Store) Admit(ctx context.Context, e store.Entry) (a store.Admission, err error) {
	if err := e.Check(); err != nil {
		return 0, err
	}
	e.Attempts, e.Returns, e.History = 0, 0, nil
	id, key := form.Name(e.MessageID), form.Key(e.OrderKey)
	err = s.again(ctx, "admit", func(said *statements) error {
		return s.pool.Query(ctx, said.look, []any{e.Group, id, e.Group, id, e.Group, key}, func(row txn.Scanner) error {
			return row.Scan(&a) // the numbers are those of the admissions
		})
	})
	if err != nil || a != store.Behind {
		return a, err
	}
	w, err := write(e)
	if err != nil {
		return 0, fmt.Errorf("sqlstore: admit: %w", err)
	}
	err = s.atomic(ctx, "admit", func(said *statements, q txn.Querier) error {
		a = store.Open
		closed, err := lockTail(ctx, said, q, w)
		if err != nil || !closed {
			return err
		}
		a = store.Behind
		fresh, err := said.fresh(ctx, q, said.insert, w.row(nil)...)
		if err == nil && !fresh {
			a = store.Stored
		}
		return err
	})
	return a, err
}

func found(ctx context.Context, q txn.Querier, query string, args ...any) (yes bool, err error) {
	err = q.Query(ctx, query, args, func(row txn.Scanner) error {
		yes = true
		return row.Scan(new(int64))
	})
	return yes, err
}

// lockTail locks the last message of the order key, and reports whether there is one.
func lockTail(ctx context.Context, said *statements, q txn.Querier, w written) (bool, error) {
	for {
		locked, err := found(ctx, q, said.tail, w.group, w.key)
		if locked || err != nil {
			return locked, err
		}
		// The one that was waited for may be gone while another was appended meanwhile.
		if closed, err := found(ctx, q, said.busy, w.group, w.key); !closed || err != nil {
			return false, err
		}
	}
}

// line stores a message that is due after the delay, or behind the others of its key. It reports false if the
// message is there.
func line(ctx context.Context, said *statements, q txn.Querier, w written, delay time.Duration) (bool, error) {
	var due any = delay.Microseconds()
	if w.key != "" {
		closed, err := lockTail(ctx, said, q, w)
		if err != nil {
			return false, err
		}
		if closed {
			due = nil
		}
	}
	return said.fresh(ctx, q, said.insert, w.row(due)...)
}

// Defer implements store.Delayed.
func (s *Store) Defer(ctx context.Context, e store.Entry, delay time.Duration) error {
	if err := e.Check(); err != nil {
		return err
	}
	w, err := write(e)
	if err != nil {
		return fmt.Errorf("sqlstore: defer: %w", err)
	}
	return s.atomic(ctx, "defer", func(said *statements, q txn.Querier) error {
		fresh, err := line(ctx, said, q, w, delay)
		if err != nil || fresh {
			return err
		}
		_, err = q.Exec(ctx, said.raise, w.attempts, w.group, w.id, w.attempts)
		return err
	})
}

// Take implements store.Delayed. An idle one is a read.
func (s *Store) Take(ctx context.Context, t store.Take) (taken []store.Entry, next time.Duration, err error) {
	if err := t.Check(); err != nil {
		return nil, 0, err
	}
	next, err = s.next(ctx, t.Group)
	if err != nil || next != 0 {
		return nil, next, err
	}
	var bad []unreadable
	err = s.atomic(ctx, "take", func(said *statements, q txn.Querier) error {
		taken, bad = nil, nil
		var positions []string
		err := q.Query(ctx, said.due, []any{t.Group, t.Limit}, func(row txn.Scanner) error {
			var pos int64
			w := written{group: t.Group}
			if err := row.Scan(&pos, &w.id, &w.key, &w.attempts, &w.history, &w.head, &w.payload); err != nil {
				return err
			}
			positions = append(positions, strconv.FormatInt(pos, 10))
			if e, err := form.Decode(w.group, w.history, w.head, w.payload, w.attempts); err != nil {
				bad = append(bad, unreadable{pos: pos, id: w.id, key: w.key, topic: e.Topic, cause: err})
			} else {
				taken = append(taken, e)
			}
			return nil
		})
		if err != nil || len(positions) == 0 {
			return err
		}
		_, err = q.Exec(ctx, said.lease+strings.Join(positions, ",")+")", t.Owner, t.Lease.Microseconds())
		return err
	})
	if err != nil {
		return nil, 0, err
	}
	for _, u := range bad {
		t.Unreadable(u.id, errors.Join(u.cause, s.setAside(ctx, t, u)))
	}
	if len(taken)+len(bad) == t.Limit {
		return taken, 0, nil
	}
	next, err = s.next(ctx, t.Group)
	if err != nil { // the messages are taken all the same
		return taken, -1, nil
	}
	return taken, next, nil
}

// next is the time until something is due.
func (s *Store) next(ctx context.Context, group string) (next time.Duration, err error) {
	err = s.again(ctx, "take", func(said *statements) error {
		next = -1
		return s.pool.Query(ctx, said.wait, []any{group}, func(row txn.Scanner) error {
			var wait int64
			err := row.Scan(&wait)
			next = max(0, time.Duration(wait)*time.Microsecond)
			return err
		})
	})
	return next, err
}

// Renew implements store.Delayed.
func (s *Store) Renew(ctx context.Context, e store.Entry, owner string, lease time.Duration) (bool, error) {
	if err := e.Check(); err != nil {
		return false, err
	}
	return s.changed(ctx, "renew", func(said *statements) string { return said.renew },
		lease.Microseconds(), e.Group, form.Name(e.MessageID), owner)
}

// Begin implements store.Delayed.
func (s *Store) Begin(ctx context.Context, e store.Entry, owner string, attempt int) (held bool, err error) {
	if err := e.Check(); err != nil {
		return false, err
	}
	held, err = s.changed(ctx, "begin", func(said *statements) string { return said.begin },
		attempt, e.Group, form.Name(e.MessageID), owner, attempt)
	if held || err != nil {
		return held, err
	}
	// It may be recorded already.
	err = s.again(ctx, "begin", func(said *statements) error {
		held, err = found(ctx, s.pool, said.holds, e.Group, form.Name(e.MessageID), owner)
		return err
	})
	return held, err
}

// Return implements store.Delayed.
func (s *Store) Return(ctx context.Context, e store.Entry, owner string, delay time.Duration) (bool, error) {
	if err := e.Check(); err != nil {
		return false, err
	}
	history, _, _, err := form.Encode(e)
	if err != nil {
		return false, err
	}
	return s.changed(ctx, "return", func(said *statements) string { return said.give },
		e.Attempts, history, delay.Microseconds(), e.Group, form.Name(e.MessageID), owner)
}

// Forget implements store.Delayed.
func (s *Store) Forget(ctx context.Context, e store.Entry, owner string) (held bool, err error) {
	if err := e.Check(); err != nil {
		return false, err
	}
	if e.OrderKey == "" {
		return s.changed(ctx, "forget", func(said *statements) string { return said.removeLonely },
			e.Group, form.Name(e.MessageID), owner)
	}
	err = s.atomic(ctx, "forget", func(said *statements, q txn.Querier) error {
		n, err := q.Exec(ctx, said.remove, e.Group, form.Name(e.MessageID), owner)
		if held = n > 0; err != nil || !held {
			return err
		}
		_, err = q.Exec(ctx, said.next, e.Group, form.Key(e.OrderKey))
		return err
	})
	return held && err == nil, err
}

// Stats implements store.Delayed.
func (s *Store) Stats(ctx context.Context, group string) (st store.Stats, err error) {
	if err := store.CheckGroup(group); err != nil {
		return st, err
	}
	err = s.again(ctx, "stats", func(said *statements) error {
		return s.pool.Query(ctx, said.stats, []any{group, group}, func(row txn.Scanner) error {
			return row.Scan(&st.Stored, &st.Due, &st.Held, &st.Blocked, &st.Dead)
		})
	})
	return st, err
}
