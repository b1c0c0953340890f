package model_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/millrace-go/millrace/internal/txn"
)

// table has the rows that were committed, by id. A row that a transaction has written, or read FOR UPDATE, is locked
// until that has ended; what it has written is with the transaction until then.
type table struct {
	rows  map[string]record
	locks map[string]*conn
}

// record is a row, by column. One that is stored is not changed any more.
type record map[string]any

// The tables of half messages with what a new row has in the columns that an INSERT does not name.
var schema = map[string]record{
	"millrace_half": {
		"id": nil, "topic": nil, "state": nil, "reason": "", "witness": "", "callback": "", "max_age": nil, "checks": int64(0), "claim": int64(0),
		"last_error": "", "digest": nil, "metadata": nil, "payload": nil, "prepared_at": nil, "next_check": nil, "decided_at": nil,
	},
	"millrace_barrier": {"id": nil, "kind": nil, "created_at": nil},
}

func newTables() map[string]*table {
	all := map[string]*table{}
	for name := range schema {
		all[name] = &table{rows: map[string]record{}, locks: map[string]*conn{}}
	}
	return all
}

// sqlError is what PostgreSQL says.
type sqlError string

const (
	uniqueViolation  sqlError = "23505"
	lockNotAvailable sqlError = "55P03"
)

func (e sqlError) Error() string    { return "model: SQLSTATE " + string(e) }
func (e sqlError) SQLState() string { return string(e) }

// schemaVersion is the question that is asked before anything else: here all is as new as can be.
const schemaVersion = "SELECT coalesce(max(version), 0) FROM millrace_schema "

// run executes a command in the transaction, at READ COMMITTED: a row that another one has locked is waited for, and
// looked at again.
func (c *conn) run(ctx context.Context, text string, args []any, row func(txn.Scanner) error) (n int64, err error) {
	if strings.HasPrefix(text, schemaVersion) {
		return 0, row(&scanner{values: []any{int64(1000)}})
	}
	if text == `SET LOCAL lock_timeout = '1s'` {
		c.patience = time.Second
		return 0, nil
	}
	cmd, err := parse(text)
	if err != nil {
		return 0, err
	}
	t := c.tables[cmd.table]
	if t == nil {
		return 0, errors.New("model: there is no table " + cmd.table)
	}
	e := scope{now: c.now(), args: args}
	if cmd.verb == "INSERT" {
		return c.put(ctx, cmd, t, e)
	}
	found := c.find(cmd, t, e)
	for _, id := range found {
		if cmd.verb != "SELECT" || cmd.locks {
			if free, err := c.lock(ctx, t, id, cmd.skips); err != nil || !free {
				if err != nil {
					return 0, err
				}
				continue
			}
		}
		e.row = c.see(t, id)
		if e.row == nil || cmd.where != nil && cmd.where(&e) != true { // it has changed meanwhile
			continue
		}
		n++
		switch cmd.verb {
		case "UPDATE":
			changed := maps.Clone(e.row)
			for i, name := range cmd.columns {
				changed[name] = cmd.values[i](&e)
			}
			c.write(t, id, changed)
		case "DELETE":
			c.write(t, id, nil)
		case "SELECT":
			s := &scanner{}
			for _, v := range cmd.values {
				s.values = append(s.values, v(&e))
			}
			if err := row(s); err != nil {
				return 0, err
			}
		}
	}
	return n, nil
}

// put is an INSERT of one row. As in PostgreSQL, its condition is asked before it waits for the place.
func (c *conn) put(ctx context.Context, cmd *command, t *table, e scope) (int64, error) {
	if cmd.where != nil && cmd.where(&e) != true {
		return 0, nil
	}
	r := maps.Clone(schema[cmd.table])
	for i, name := range cmd.columns {
		r[name] = cmd.values[i](&e)
	}
	id := r["id"].(string)
	if c.refuses != nil && c.refuses(id) {
		return 0, errAway
	}
	if _, err := c.lock(ctx, t, id, false); err != nil {
		return 0, err
	}
	switch {
	case c.see(t, id) == nil:
		c.write(t, id, r)
		return 1, nil
	case cmd.ignores:
		return 0, nil
	}
	return 0, uniqueViolation
}

// find lists the rows that a command means, as they are now.
func (c *conn) find(cmd *command, t *table, e scope) (ids []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := maps.Clone(t.rows)
	for id, r := range c.written[t] {
		all[id] = r
	}
	for id, r := range all {
		e.row = r
		if r != nil && (cmd.where == nil || cmd.where(&e) == true) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	if cmd.order != "" {
		sort.SliceStable(ids, func(i, j int) bool { return order(all[ids[i]][cmd.order], all[ids[j]][cmd.order]) < 0 })
	}
	if cmd.limit != nil {
		ids = ids[:min(int64(len(ids)), cmd.limit(&e).(int64))]
	}
	return ids
}

// see is a row as the transaction sees it, nil if it is not there.
func (c *conn) see(t *table, id string) record {
	if r, mine := c.written[t][id]; mine {
		return r
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return t.rows[id]
}

func (c *conn) write(t *table, id string, r record) {
	if c.written[t] == nil {
		c.written[t] = map[string]record{}
	}
	c.written[t][id] = r
}

// lock takes a row, and waits for whoever has it, as long as the transaction is patient.
func (c *conn) lock(ctx context.Context, t *table, id string, skip bool) (bool, error) {
	var over <-chan time.Time
	for {
		c.mu.Lock()
		holder := t.locks[id]
		if holder == nil || holder == c {
			t.locks[id] = c
			c.mu.Unlock()
			return true, nil
		}
		c.mu.Unlock()
		if skip {
			return false, nil
		}
		if over == nil && c.patience > 0 {
			timer := time.NewTimer(c.patience)
			defer timer.Stop()
			over = timer.C
		}
		select {
		case <-holder.ended:
		case <-over:
			return false, lockNotAvailable
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
}

// apply makes what the transaction has written everybody's. The caller holds the lock of the database.
func (c *conn) apply() {
	for _, name := range []string{"millrace_barrier", "millrace_half"} {
		t := c.tables[name]
		for _, id := range slices.Sorted(maps.Keys(c.written[t])) {
			before, after := t.rows[id], c.written[t][id]
			if after == nil {
				delete(t.rows, id)
			} else {
				t.rows[id] = after
			}
			if c.changed != nil {
				c.changed(c, name, id, before, after)
			}
		}
	}
}

// unlock gives the rows back. The caller holds the lock of the database.
func (c *conn) unlock() {
	for _, t := range c.tables {
		for id, holder := range t.locks {
			if holder == c {
				delete(t.locks, id)
			}
		}
	}
}

// scanner is one row of an answer.
type scanner struct{ values []any }

func (s *scanner) Scan(dest ...any) error {
	if len(dest) != len(s.values) {
		return fmt.Errorf("model: %d columns, and %d are wanted", len(s.values), len(dest))
	}
	for i, d := range dest {
		ok := true
		switch d := d.(type) {
		case *int64:
			*d, ok = s.values[i].(int64)
		case *int:
			var n int64
			n, ok = s.values[i].(int64)
			*d = int(n)
		case *string:
			*d, ok = s.values[i].(string)
		case *[]byte:
			*d, ok = s.values[i].([]byte)
		default:
			ok = false
		}
		if !ok {
			return fmt.Errorf("model: column %d is %T, and %T is wanted", i, s.values[i], d)
		}
	}
	return nil
}
