package redisstore

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/millrace-go/millrace/store"
	"github.com/millrace-go/millrace/store/internal/form"
)

// Put implements store.Dead.
func (s *Store) Put(ctx context.Context, l store.Letter) error {
	id, key, history, head, payload, err := checked(l.Entry)
	if err != nil {
		return err
	}
	return s.run(ctx, "put", put, l.Group, id, key, history, head, payload, l.Attempts,
		form.Name(l.MessageID), form.Name(l.Topic), form.Line(l.Reason, 255), form.Line(l.Error, 1000)).Err()
}

// List implements store.Dead. The filter is applied here, page by page: choosing a few letters among very
// many reads them all.
func (s *Store) List(ctx context.Context, f store.Filter, after int64, limit int) ([]store.Letter, error) {
	if err := store.CheckGroup(f.Group); err != nil || limit < 1 {
		return nil, err
	}
	const pageSize = 200
	var chosen []store.Letter
	written := f // of one that cannot be read, only these are known
	written.MessageID, written.Topic = form.Name(f.MessageID), form.Name(f.Topic)
	for {
		// One field takes the place of the payload.
		rows, err := s.page(ctx, "list", f.Group, "d:", "letters", after, pageSize, "at", "r", "w", "a", "m", "t", "s", "h", "z", "z")
		if err != nil {
			return nil, err
		}
		for _, row := range rows {
			l := letter(f.Group, row, nil)
			if after = l.ID; f.Match(l) || l.Unreadable != nil && written.Match(l) {
				chosen = append(chosen, l)
			}
			if len(chosen) == limit {
				return chosen, nil
			}
		}
		if len(rows) < pageSize {
			return chosen, nil
		}
	}
}

// letter reads one of number, at, reason, error, attempts, message id, topic, history, head, size.
func letter(group string, row []string, payload []byte) store.Letter {
	l := store.Letter{Reason: row[2], Error: row[3], At: at(row[1])}
	l.Group = group
	l.ID, _ = strconv.ParseInt(row[0], 10, 64)
	l.Attempts, _ = strconv.Atoi(row[4])
	l.Size, _ = strconv.Atoi(row[9])
	return form.Letter(l, row[5], row[6], []byte(row[7]), []byte(row[8]), payload)
}

func at(micros string) time.Time {
	n, _ := strconv.ParseInt(micros, 10, 64)
	return time.UnixMicro(n).UTC()
}

// page reads records behind one number: for each its number and its fields.
func (s *Store) page(ctx context.Context, op, group, prefix, set string, after int64, limit int, fields ...string) ([][]string, error) {
	args := []any{prefix, set, after, limit}
	for _, f := range fields {
		args = append(args, f)
	}
	reply, err := s.run(ctx, op, page, group, args...).Slice()
	if err != nil {
		return nil, err
	}
	width := len(fields) + 1
	if len(reply)%width != 0 {
		return nil, fmt.Errorf("redisstore: %s: the server's answer is not understood (%d values)", op, len(reply))
	}
	var rows [][]string
	for at := 0; at < len(reply); at += width {
		rows = append(rows, texts(reply[at:at+width]))
	}
	return rows, nil
}

// Get implements store.Dead.
func (s *Store) Get(ctx context.Context, group string, id int64) (store.Letter, error) {
	if err := store.CheckGroup(group); err != nil {
		return store.Letter{}, err
	}
	rows, err := s.page(ctx, "get", group, "d:", "letters", id-1, 1, "at", "r", "w", "a", "m", "t", "s", "h", "z", "p")
	if err != nil {
		return store.Letter{}, err
	}
	if len(rows) == 0 || rows[0][0] != strconv.FormatInt(id, 10) {
		return store.Letter{}, store.ErrNotFound
	}
	return letter(group, rows[0], []byte(rows[0][10])), nil
}

// Decide implements store.Dead.
func (s *Store) Decide(ctx context.Context, d store.Decision) ([]int64, error) {
	if err := d.Check(); err != nil {
		return nil, err
	}
	args := []any{string(d.Action), form.Line(d.Who, 200), form.Line(d.Why, 1000), "", "", "", "", "", ""}
	if d.Edited != nil {
		id, key, _, head, payload, err := written(*d.Edited)
		if err != nil {
			return nil, fmt.Errorf("redisstore: %s: %w", d.Action, err)
		}
		args = append(args[:3], "1", id, key, head, payload, form.Name(d.Edited.MessageID))
	}
	for _, id := range d.Letters {
		args = append(args, id)
	}
	return s.run(ctx, string(d.Action), decide, d.Group, args...).Int64Slice()
}

// Audit implements store.Dead.
func (s *Store) Audit(ctx context.Context, group string, after int64, limit int) ([]store.Audit, error) {
	if err := store.CheckGroup(group); err != nil || limit < 1 {
		return nil, err
	}
	rows, err := s.page(ctx, "audit", group, "a:", "audit", after, limit, "at", "action", "letter", "id", "new", "who", "why")
	if err != nil {
		return nil, err
	}
	var all []store.Audit
	for _, row := range rows {
		a := store.Audit{Group: group, At: at(row[1]), Action: store.Action(row[2]), MessageID: row[4], NewID: row[5], Who: row[6], Why: row[7]}
		a.ID, _ = strconv.ParseInt(row[0], 10, 64)
		a.Letter, _ = strconv.ParseInt(row[3], 10, 64)
		all = append(all, a)
	}
	return all, nil
}
