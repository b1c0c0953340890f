package sqlstore

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/millrace-go/millrace/internal/txn"
	"github.com/millrace-go/millrace/store"
	"github.com/millrace-go/millrace/store/internal/form"
)

// Put implements store.Dead.
func (s *Store) Put(ctx context.Context, l store.Letter) error {
	if err := l.Check(); err != nil {
		return err
	}
	w, err := write(l.Entry)
	if err != nil {
		return fmt.Errorf("sqlstore: put: %w", err)
	}
	return s.again(ctx, "put", func(said *statements) error {
		_, err := said.fresh(ctx, s.pool, said.put, w.group, w.id, w.key,
			form.Name(l.Topic), form.Line(l.Reason, 255), form.Line(l.Error, 1000), w.attempts, w.history, w.head, w.payload)
		return err
	})
}

// scanLetter reads one letter, and how it is written, but for the last column, which goes to last.
func scanLetter(row txn.Scanner, group string, last any) (l store.Letter, w written, topic string, err error) {
	var at int64
	err = row.Scan(&l.ID, &at, &l.Reason, &l.Error, &l.Attempts, &w.id, &w.key, &topic, &w.history, &w.head, last)
	l.At = time.UnixMicro(at).UTC()
	l.Group, w.group = group, group
	return l, w, topic, err
}

// List implements store.Dead.
func (s *Store) List(ctx context.Context, f store.Filter, after int64, limit int) (page []store.Letter, err error) {
	if err := store.CheckGroup(f.Group); err != nil || limit < 1 {
		return nil, err
	}
	err = s.again(ctx, "list", func(said *statements) error {
		page = nil
		query, args := said.filtered(f, after, limit)
		return s.pool.Query(ctx, query, args, func(row txn.Scanner) error {
			var size int64
			l, w, topic, err := scanLetter(row, f.Group, &size)
			l.Size = int(size)
			page = append(page, form.Letter(l, w.id, topic, w.history, w.head, nil))
			return err
		})
	})
	return page, err
}

// filtered is the query of a page.
func (s *statements) filtered(f store.Filter, after int64, limit int) (string, []any) {
	died := map[txn.Dialect]string{
		txn.Postgres: `to_timestamp(0) + ?::bigint * interval '1 microsecond'`,
		txn.MySQL:    `'1970-01-01' + INTERVAL ? MICROSECOND`,
		txn.SQLite:   `?`,
	}[s.dialect]
	query, args := "", []any{f.Group, after}
	and := func(condition string, arg any) { query, args = query+" AND "+condition, append(args, arg) }
	if f.Reason != "" {
		and("reason = ?", form.Line(f.Reason, 255))
	}
	if f.Topic != "" {
		and("topic = ?", form.Name(f.Topic))
	}
	if f.MessageID != "" {
		and("message_id = ?", form.Name(f.MessageID))
	}
	if !f.Since.IsZero() {
		and("died_at >= "+died, f.Since.UnixMicro())
	}
	if !f.Until.IsZero() {
		and("died_at < "+died, f.Until.UnixMicro())
	}
	// The beginning is translated already; its two arguments are numbered.
	rest := query + " ORDER BY id LIMIT ?"
	args = append(args, limit)
	if s.dialect == txn.Postgres {
		return s.list + renumber(rest, 2), args
	}
	return s.list + rest, args
}

// Get implements store.Dead.
func (s *Store) Get(ctx context.Context, group string, id int64) (l store.Letter, err error) {
	if err := store.CheckGroup(group); err != nil {
		return l, err
	}
	ok := false
	err = s.again(ctx, "get", func(said *statements) (err error) {
		l, _, ok, err = one(ctx, s.pool, said.get, group, id)
		return err
	})
	if err == nil && !ok {
		return store.Letter{}, store.ErrNotFound
	}
	return l, err
}

// one reads one letter, and how it is written.
func one(ctx context.Context, q txn.Querier, query, group string, id int64) (l store.Letter, w written, ok bool, err error) {
	err = q.Query(ctx, query, []any{group, id}, func(row txn.Scanner) error {
		var topic string
		var payload []byte
		var err error
		l, w, topic, err = scanLetter(row, group, &payload)
		ok, w.payload, l.Size = true, payload, len(payload)
		l = form.Letter(l, w.id, topic, w.history, w.head, payload)
		return err
	})
	return l, w, ok, err
}

// Decide implements store.Dead.
func (s *Store) Decide(ctx context.Context, d store.Decision) (done []int64, err error) {
	if err := d.Check(); err != nil {
		return nil, err
	}
	ids := slices.Clone(d.Letters)
	slices.Sort(ids) // so that two operators do not wait for each other crosswise
	err = s.atomic(ctx, string(d.Action), func(said *statements, q txn.Querier) error {
		done = nil
		for _, id := range slices.Compact(ids) {
			_, w, ok, err := one(ctx, q, said.letters, d.Group, id)
			if err != nil {
				return err
			}
			if !ok {
				continue
			}
			if err := decideOne(ctx, said, q, d, id, w); err != nil {
				return err
			}
			done = append(done, id)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return done, nil
}

// decideOne decides about the letter that is written so.
func decideOne(ctx context.Context, said *statements, q txn.Querier, d store.Decision, id int64, w written) error {
	if _, err := q.Exec(ctx, said.bury, id); err != nil {
		return err
	}
	oldID, newID := w.id, ""
	if d.Edited != nil {
		var err error
		if w, err = write(*d.Edited); err != nil {
			return err
		}
		newID = w.id
	}
	if d.Action == store.Replayed {
		if err := revive(ctx, said, q, w); err != nil {
			return err
		}
	}
	_, err := q.Exec(ctx, said.note, d.Group, string(d.Action), id, oldID, newID, form.Line(d.Who, 200), form.Line(d.Why, 1000))
	return err
}

// revive makes a message due with no attempts and no history. Whoever holds the copy that is there holds it no
// more.
func revive(ctx context.Context, said *statements, q txn.Querier, w written) error {
	w.attempts, w.history = 0, []byte(form.NoHistory)
	fresh, err := line(ctx, said, q, w, 0)
	if err != nil || fresh {
		return err
	}
	_, err = q.Exec(ctx, said.revive, w.history, w.group, w.id)
	return err
}

// Audit implements store.Dead.
func (s *Store) Audit(ctx context.Context, group string, after int64, limit int) (page []store.Audit, err error) {
	if err := store.CheckGroup(group); err != nil || limit < 1 {
		return nil, err
	}
	err = s.again(ctx, "audit", func(said *statements) error {
		page = nil
		return s.pool.Query(ctx, said.audit, []any{group, after, limit}, func(row txn.Scanner) error {
			a := store.Audit{Group: group}
			var at int64
			var action string
			err := row.Scan(&a.ID, &at, &action, &a.Letter, &a.MessageID, &a.NewID, &a.Who, &a.Why)
			a.At, a.Action = time.UnixMicro(at).UTC(), store.Action(action)
			page = append(page, a)
			return err
		})
	})
	return page, err
}
