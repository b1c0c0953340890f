package sqlstore

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/millrace-go/millrace/internal/dberr"
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
	err = s.atomic(ctx, "admit", func(said *statements, q txn.Querier) error {
		a = store.Open
		closed, err := lockTail(ctx, said, q, e)
		if err != nil || !closed {
			return err
		}
		a = store.Behind
		fresh, err := insert(ctx, said, q, e, nil)
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
func lockTail(ctx context.Context, said *statements, q txn.Querier, e store.Entry) (bool, error) {
	for {
		locked, err := found(ctx, q, said.tail, e.Group, form.Key(e.OrderKey))
		if locked || err != nil {
			return locked, err
		}
		// The one that was waited for may be gone while another was appended meanwhile.
		if closed, err := found(ctx, q, said.busy, e.Group, form.Key(e.OrderKey)); !closed || err != nil {
			return false, err
		}
	}
}

// line stores a message that is due after the delay, or behind the others of its key. It reports false if the
// message is there.
func line(ctx context.Context, said *statements, q txn.Querier, e store.Entry, delay time.Duration) (bool, error) {
	var due any = delay.Microseconds()
	if e.OrderKey != "" {
		closed, err := lockTail(ctx, said, q, e)
		if err != nil {
			return false, err
		}
		if closed {
			due = nil
		}
	}
	return insert(ctx, said, q, e, due)
}

// insert stores a message that is due after the delay, or waits for its key if that is nil. It reports
// false if the message is there.
func insert(ctx context.Context, said *statements, q txn.Querier, e store.Entry, delay any) (bool, error) {
	history, head, payload, err := form.Encode(e)
	if err != nil {
		return false, err
	}
	text := said.insert
	switch said.dialect {
	case txn.MySQL: // INSERT IGNORE would hide other mistakes, too
	default:
		text += ` ON CONFLICT (grp, message_id) DO NOTHING`
	}
	n, err := q.Exec(ctx, text, e.Group, form.Name(e.MessageID), form.Key(e.OrderKey), e.Attempts, history, head, payload, delay)
	if err != nil && said.dialect == txn.MySQL && dberr.MySQL(err) == duplicateEntry {
		return false, nil
	}
	return n > 0, err
}

// duplicateEntry fails the statement alone.
const duplicateEntry = 1062

// Defer implements store.Delayed.
func (s *Store) Defer(ctx context.Context, e store.Entry, delay time.Duration) error {
	if err := e.Check(); err != nil {
		return err
	}
	return s.atomic(ctx, "defer", func(said *statements, q txn.Querier) error {
		fresh, err := line(ctx, said, q, e, delay)
		if err != nil || fresh {
			return err
		}
		_, err = q.Exec(ctx, said.raise, e.Attempts, e.Group, form.Name(e.MessageID), e.Attempts)
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
	err = s.atomic(ctx, "take", func(said *statements, q txn.Querier) error {
		taken = nil
		var positions []string
		err := q.Query(ctx, said.due, []any{t.Group, t.Limit}, func(row txn.Scanner) error {
			var pos int64
			var attempts int
			var history, head, payload []byte
			if err := row.Scan(&pos, &attempts, &history, &head, &payload); err != nil {
				return err
			}
			e, err := form.Decode(t.Group, history, head, payload, attempts)
			taken, positions = append(taken, e), append(positions, strconv.FormatInt(pos, 10))
			return err
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
	if len(taken) == t.Limit {
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
