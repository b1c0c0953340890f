package model_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/millrace-go/millrace/internal/backoff"
	"github.com/millrace-go/millrace/internal/meta"
	"github.com/millrace-go/millrace/internal/txn"
	"github.com/millrace-go/millrace/outbox"
	"github.com/millrace-go/millrace/outbox/outboxtest"
)

// database is one that knows the few statements that the outbox, the inbox and the businesses write: rows of the
// outbox, which others see after COMMIT, and unique rows, for which a second writer waits until the first one has ended;
// and it has the tables of half messages.
type database struct {
	w    *world
	name string
	// commit is told of the effects of a transaction.
	commit func(effects []string)
	// changed is told of each row of a table, before and after the commit; nil is none.
	changed func(c *conn, table, id string, before, after record)
	// refuses keeps rows from being inserted.
	refuses func(id string) bool
	skew    time.Duration // of its clock
	lates   bool          // a COMMIT may arrive when nobody waits for its answer any more

	mu     sync.Mutex
	unique map[string]*conn // nil: committed
	tables map[string]*table
}

func (w *world) newDatabase(name string, commit func(effects []string)) *database {
	return &database{w: w, name: name, commit: commit, unique: map[string]*conn{}, tables: newTables()}
}

// now is the database's time.
func (d *database) now() int64 { return time.Now().Add(d.skew).UnixMicro() }

// asks is what every access goes through: nobody reaches a database that is away.
func (d *database) asks(ctx context.Context, l *life, op string) error {
	if err := l.asks(ctx, op+" at "+d.name); err != nil {
		return err
	}
	if d.w.away(d.name) {
		return errAway
	}
	return nil
}

// It is a millrace.TxDB, and the pool behind it. A transaction belongs to the life that its context has.

func (d *database) TxnPool() txn.Pool                            { return d }
func (d *database) TxnBeginner() txn.Beginner                    { return d }
func (d *database) Handle(t *txn.Tx) *txn.Tx                     { return t }
func (d *database) Identity() any                                { return d }
func (d *database) Single() bool                                 { return false }
func (d *database) Settings() *txn.Settings                      { return settings }
func (d *database) Dialect(context.Context) (txn.Dialect, error) { return txn.Postgres, nil }

var settings = &txn.Settings{
	CommitTimeout: 10 * time.Second, SecondTimeout: time.Second, HookTimeout: time.Minute, HooksTimeout: time.Minute,
	OnHookError: func(txn.HookError) {}, Logger: slog.New(slog.DiscardHandler),
}

// Exec is a statement that commits itself.
func (d *database) Exec(ctx context.Context, text string, args ...any) (int64, error) {
	c := d.connect(ctx)
	defer c.end()
	n, err := c.Exec(ctx, text, args...)
	if err != nil {
		return 0, err
	}
	d.mu.Lock()
	c.apply()
	d.mu.Unlock()
	if err := c.life.hears("statement at " + d.name); err != nil {
		return 0, err
	}
	return n, nil
}

func (d *database) Query(ctx context.Context, text string, args []any, row func(txn.Scanner) error) error {
	c := d.connect(ctx)
	defer c.end()
	return c.Query(ctx, text, args, row)
}

func (d *database) Begin(ctx context.Context, _ txn.Options) (txn.Conn, error) {
	if err := d.asks(ctx, lifeOf(ctx), "begin"); err != nil {
		return nil, err
	}
	return d.connect(ctx), nil
}

func (d *database) connect(ctx context.Context) *conn {
	return &conn{database: d, life: lifeOf(ctx), ended: make(chan struct{}), written: map[*table]map[string]record{}}
}

// conn is one transaction.
type conn struct {
	*database
	life    *life
	unique  []string
	rows    []row
	effects []string
	written map[*table]map[string]record // nil: deleted
	// patience is how long it waits for a row that is locked; 0 for ever.
	patience time.Duration
	broken   error
	ended    chan struct{}
	once     sync.Once
}

type row struct {
	pos   int64
	entry outboxtest.Entry
}

func (c *conn) Watch(context.Context) error       { return nil }
func (c *conn) Inside(context.Context) error      { return nil }
func (c *conn) Savepointed(context.Context) error { return nil }

// The names of unique rows. A lock is one that does not outlive its transaction.
const (
	insertInbox  = "INSERT INTO millrace_inbox "
	insertOutbox = "INSERT INTO millrace_outbox "
	insertEffect = "effect"
	lockRow      = "lock"
)

func (c *conn) Exec(ctx context.Context, text string, args ...any) (int64, error) {
	if err := c.asks(ctx, c.life, "statement"); err != nil {
		c.broken = err
		return 0, err
	}
	switch {
	case strings.HasPrefix(text, insertOutbox):
		return c.insert(text, args)
	case strings.HasPrefix(text, insertInbox):
		return c.take(ctx, fmt.Sprint("inbox/", args[0], "/", args[1]))
	case text == lockRow:
		return c.take(ctx, fmt.Sprint(lockRow, "/", args[0]))
	case text == insertEffect:
		c.effects = append(c.effects, args[0].(string))
		return 1, nil
	}
	n, err := c.run(ctx, text, args, nil)
	if err != nil {
		c.broken = err
	}
	return n, err
}

func (c *conn) Query(ctx context.Context, text string, args []any, row func(txn.Scanner) error) error {
	err := c.asks(ctx, c.life, "statement")
	if err == nil {
		_, err = c.run(ctx, text, args, row)
	}
	if err != nil {
		c.broken = err
	}
	return err
}

// take writes a unique row, and waits for whoever has written it and not ended. 0: it is there.
func (c *conn) take(ctx context.Context, name string) (int64, error) {
	for {
		c.mu.Lock()
		holder, there := c.database.unique[name]
		if !there {
			c.database.unique[name] = c
			c.unique = append(c.unique, name)
			c.mu.Unlock()
			return 1, nil
		}
		c.mu.Unlock()
		if holder == nil {
			return 0, nil
		}
		if holder == c {
			return 0, errors.New("model: twice in one transaction")
		}
		select {
		case <-holder.ended:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// insert reads an INSERT of the outbox. Positions are drawn now, and the rows are seen after COMMIT.
func (c *conn) insert(text string, args []any) (int64, error) {
	_, rest, _ := strings.Cut(text, "(")
	names, _, _ := strings.Cut(rest, ")")
	columns := strings.Split(names, ", ")
	for i, name := range columns {
		if name == "ready" { // a flag, a delay, and a time, of which the last two make one column
			columns = append(columns[:i+1], append([]string{"after"}, columns[i+1:]...)...)
			break
		}
	}
	if len(args)%len(columns) != 0 {
		return 0, fmt.Errorf("model: %d parameters for the columns %v", len(args), columns)
	}
	for len(args) > 0 {
		e := outboxtest.Entry{}
		for i, name := range columns {
			if err := assign(&e, name, args[i]); err != nil {
				return 0, err
			}
		}
		if e.Key == "" {
			e.Lane = outbox.Lane(e.ID)
		} else {
			e.Meta[meta.Key] = e.Key // as a store reads it
		}
		c.rows = append(c.rows, row{c.w.outbox.Draw(), e})
		args = args[len(columns):]
	}
	return int64(len(c.rows)), nil
}

func assign(e *outboxtest.Entry, column string, v any) error {
	switch column {
	case "id":
		e.ID = v.(string)
	case "topic":
		e.Topic = v.(string)
	case "order_key":
		e.Key = v.(string)
	case "metadata":
		return json.Unmarshal([]byte(v.(string)), &e.Meta)
	case "payload":
		e.Body = v.([]byte)
	case "keep":
		e.After = outbox.After(v.(int))
	case "plan":
		if v != nil {
			return json.Unmarshal([]byte(v.(string)), &e.Plan)
		}
	}
	return nil
}

func (c *conn) Commit(ctx context.Context, stmts []txn.Statement, _ time.Duration) (txn.Outcome, error) {
	late := false
	defer func() {
		if !late {
			c.hangUp()
		}
	}()
	for _, s := range stmts {
		n, err := c.Exec(ctx, s.SQL, s.Args...)
		if s.Check != nil {
			err = s.Check(n, err)
		}
		if err != nil {
			return txn.RolledBack, err
		}
	}
	if c.broken != nil {
		return txn.RolledBack, c.broken
	}
	if len(c.rows) > 0 { // others commit meanwhile
		backoff.Sleep(ctx, time.Duration(c.w.fate(20, "commit", c.rows[0].entry.ID))*time.Millisecond)
	}
	if err := c.asks(ctx, c.life, "commit"); err != nil {
		return txn.Unknown, err
	}
	op := "commit at " + c.name
	if n := c.life.nth("late " + op); c.lates && c.w.strikes(c.w.chaos.dbLate, c.life.name, op, n, "late") {
		late = true
		c.w.later(c.w.tardiness(c.life.name, op, n), func() { c.commits(); c.end() })
		return txn.Unknown, errAway
	}
	c.commits()
	if err := c.life.hears(op); err != nil {
		return txn.Unknown, err
	}
	return txn.Committed, nil
}

// commits is what the server does.
func (c *conn) commits() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, name := range c.unique {
		if !strings.HasPrefix(name, lockRow) {
			c.database.unique[name] = nil
		}
	}
	for _, r := range c.rows {
		c.w.outbox.InsertAt(r.pos, r.entry)
		c.w.committed(r.entry)
	}
	c.apply()
	if c.commit != nil {
		c.commit(c.effects)
	}
}

func (c *conn) Rollback(context.Context) error {
	c.hangUp()
	return nil
}

// hangUp ends a transaction that did not commit. What a dead process has left open the server notices some time later.
func (c *conn) hangUp() {
	if c.life.over() && !c.w.healed() {
		c.w.later(time.Duration(c.w.fate(8000, c.life.name, "noticed"))*time.Millisecond, c.end)
		return
	}
	c.end()
}

func (c *conn) end() {
	c.once.Do(func() {
		c.mu.Lock()
		for _, name := range c.unique {
			if c.database.unique[name] == c {
				delete(c.database.unique, name)
			}
		}
		c.unlock()
		c.mu.Unlock()
		close(c.ended)
	})
}
