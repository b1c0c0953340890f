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
// outbox, which others see after COMMIT, and unique rows, for which a second writer waits until the first one has ended.
type database struct {
	w    *world
	name string
	// commit is told of the effects of a transaction.
	commit func(effects []string)

	mu     sync.Mutex
	unique map[string]*conn // nil: committed
}

func (w *world) newDatabase(name string, commit func(effects []string)) *database {
	return &database{w: w, name: name, commit: commit, unique: map[string]*conn{}}
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

func (d *database) Exec(context.Context, string, ...any) (int64, error) {
	return 0, errors.New("model: a statement outside of a transaction")
}

func (d *database) Query(context.Context, string, []any, func(txn.Scanner) error) error {
	return errors.New("model: this database answers no queries")
}

func (d *database) Begin(ctx context.Context, _ txn.Options) (txn.Conn, error) {
	l := lifeOf(ctx)
	if err := l.asks(ctx, "begin at "+d.name); err != nil {
		return nil, err
	}
	return &conn{database: d, life: l, ended: make(chan struct{})}, nil
}

// conn is one transaction.
type conn struct {
	*database
	life    *life
	unique  []string
	rows    []row
	effects []string
	broken  error
	ended   chan struct{}
	once    sync.Once
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
	if err := c.life.asks(ctx, "statement at "+c.name); err != nil {
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
	return 0, fmt.Errorf("model: this database does not know: %s", text)
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
	defer c.end()
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
	op := "commit at " + c.name
	if err := c.life.asks(ctx, op); err != nil {
		return txn.Unknown, err
	}
	c.mu.Lock()
	for _, name := range c.unique {
		if !strings.HasPrefix(name, lockRow) {
			c.database.unique[name] = nil
		}
	}
	for _, r := range c.rows {
		c.w.outbox.InsertAt(r.pos, r.entry)
		c.w.committed(r.entry)
	}
	if c.commit != nil {
		c.commit(c.effects)
	}
	c.mu.Unlock()
	if err := c.life.hears(op); err != nil {
		return txn.Unknown, err
	}
	return txn.Committed, nil
}

func (c *conn) Rollback(context.Context) error {
	c.end()
	return nil
}

func (c *conn) end() {
	c.once.Do(func() {
		c.mu.Lock()
		for _, name := range c.unique {
			if c.database.unique[name] == c {
				delete(c.database.unique, name)
			}
		}
		c.mu.Unlock()
		close(c.ended)
	})
}
