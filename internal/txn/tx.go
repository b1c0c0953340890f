package txn

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/millrace-go/millrace/internal/dberr"
)

type status int

const (
	active status = iota
	completing
	ended
)

// Tx is one transaction from BEGIN to its last hook.
type Tx struct {
	pool     Beginner
	conn     Conn
	dialect  Dialect
	options  Options
	settings *Settings
	ctx      context.Context    // that fn was given; for the methods of handles that get none
	cancel   context.CancelFunc // ends ctx

	use sync.Mutex // held while a statement runs

	mu           sync.Mutex // guards what follows
	status       status
	aborted      error // the server or the connection ended the transaction
	failed       error // refused until ROLLBACK TO a savepoint
	rollbackOnly error
	giveUp       bool // fn itself asked for the rollback
	saves        []savepoint
	serial       int
	raw          bool // Unwrap: statements may run that are not seen
	hidden       bool // a statement ran whose failure may not have been seen
	strange      bool // a statement ran that may have committed
	parts        []part
	hooks        []hook
	onEnd        []func(Outcome)
}

type part struct{ key, value any }

// savepoint remembers the state that ROLLBACK TO brings back.
type savepoint struct {
	name         string
	hooks        int
	failed       error
	rollbackOnly error
	giveUp       bool
}

// Identity is that of the Pool.
func (t *Tx) Identity() any { return t.pool.Identity() }

// Context is the one that fn was given.
func (t *Tx) Context() context.Context { return t.ctx }

// Conn is the transaction at the driver, for the handle that guards it.
func (t *Tx) Conn() Conn { return t.conn }

// Dialect is the kind of database.
func (t *Tx) Dialect() Dialect { return t.dialect }

// ReadOnly reports whether the transaction was begun read-only.
func (t *Tx) ReadOnly() bool { return t.options.ReadOnly }

// Err is nil while statements and registrations are accepted.
func (t *Tx) Err() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.err()
}

func (t *Tx) err() error {
	switch {
	case t.status != active:
		return ErrTxCompleted
	case t.aborted != nil:
		return Because(ErrTxAborted, t.aborted)
	case t.failed != nil:
		return Because(ErrTxAborted, t.failed)
	}
	return nil
}

// holds tells whether the transaction has its connection.
func (t *Tx) holds() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.status != ended
}

// Attach returns the value of key, made by the first caller. A value that is a Flusher takes part in
// every flush, in order of attachment.
func (t *Tx) Attach(key any, make func() any) (any, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range t.parts {
		if p.key == key {
			return p.value, t.err()
		}
	}
	if err := t.err(); err != nil {
		return nil, err
	}
	v := make()
	t.parts = append(t.parts, part{key, v})
	return v, nil
}

// Buffering reports whether writes may wait for the flush. While a savepoint is open, or when
// statements may run that are not seen, they must be executed at once.
func (t *Tx) Buffering() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.saves) == 0 && !t.raw
}

// OnEnd has fn called right after the transaction ended, before any hook. It must be cheap and may
// not fail.
func (t *Tx) OnEnd(fn func(Outcome)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.onEnd = append(t.onEnd, fn)
}

// Raw is called when the user reaches for the driver's own transaction. What goes wrong here shows
// in the next statement and at COMMIT.
func (t *Tx) Raw() {
	t.mu.Lock()
	done := t.raw
	t.raw, t.strange = true, true
	t.mu.Unlock()
	if !done {
		_ = t.Do(t.ctx, "", true, func() error { return t.flush(t.ctx) })
	}
}

// MarkRollbackOnly makes the transaction, or the open Nested part of it, end with a rollback.
func (t *Tx) MarkRollbackOnly() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.status != active {
		return ErrTxCompleted
	}
	t.giveUp = true
	return nil
}

// Exec runs a statement of a participant.
func (t *Tx) Exec(ctx context.Context, sql string, args ...any) (n int64, err error) {
	err = t.Do(ctx, sql, false, func() (err error) {
		if err = t.inside(ctx); err == nil {
			n, err = t.conn.Exec(ctx, sql, args...)
		}
		return err
	})
	return n, err
}

// Query runs a query of a participant.
func (t *Tx) Query(ctx context.Context, sql string, args []any, row func(Scanner) error) error {
	return t.Do(ctx, sql, false, func() error {
		if err := t.inside(ctx); err != nil {
			return err
		}
		return t.conn.Query(ctx, sql, args, row)
	})
}

// FlushNow runs what all Flushers have buffered.
func (t *Tx) FlushNow(ctx context.Context) error {
	return t.Do(ctx, "", false, func() error { return t.flush(ctx) })
}

// Do runs op, which executes text, unless the transaction refuses it, and learns from its error. With
// hides, op's error is not all that can go wrong with text: rows are still to be read, or it is only
// prepared.
func (t *Tx) Do(ctx context.Context, text string, hides bool, op func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if !t.use.TryLock() {
		return ErrConcurrentUse
	}
	defer t.use.Unlock()
	effects, err := t.admit(text)
	if err != nil {
		return err
	}
	for _, e := range effects {
		hides = hides || e.verb == opaque
		if e.verb == save {
			if err := t.flush(ctx); err != nil {
				return err
			}
		}
	}
	if hides {
		if err := t.watch(ctx); err != nil {
			return t.learn(ctx, err)
		}
	}
	if err := op(); err != nil {
		return t.learn(ctx, err)
	}
	return t.apply(ctx, effects)
}

// admit says whether text may run now.
func (t *Tx) admit(text string) ([]effect, error) {
	effects := scan(t.dialect, text)
	t.mu.Lock()
	defer t.mu.Unlock()
	recovers := len(effects) == 1 && effects[0].verb == rollbackTo && t.status == active && t.aborted == nil
	if err := t.err(); err != nil && !recovers {
		return nil, err
	}
	for _, e := range effects {
		switch e.verb {
		case control:
			return nil, ErrTxControl
		case implicit:
			return nil, ErrImplicitCommit
		case opaque:
			t.strange = true
		}
	}
	return effects, nil
}

// apply follows the savepoints.
func (t *Tx) apply(ctx context.Context, effects []effect) error {
	moved := false
	t.mu.Lock()
	for _, e := range effects {
		switch e.verb {
		case save:
			moved = true
			t.saves = append(t.saves, savepoint{e.name, len(t.hooks), t.failed, t.rollbackOnly, t.giveUp})
		case release:
			moved = true
			if i := t.savepoint(e.name); i >= 0 {
				t.saves = t.saves[:i]
			}
		case rollbackTo:
			moved = true
			if i := t.savepoint(e.name); i >= 0 {
				s := t.saves[i]
				t.saves = t.saves[:i+1]
				t.failed, t.rollbackOnly, t.giveUp = s.failed, s.rollbackOnly, s.giveUp
				t.undoHooks(s.hooks)
			}
		}
	}
	t.mu.Unlock()
	if !moved {
		return nil
	}
	if err := t.conn.Savepointed(ctx); err != nil {
		return t.learn(ctx, err)
	}
	return nil
}

func (t *Tx) savepoint(name string) int {
	for i := len(t.saves) - 1; i >= 0; i-- {
		if t.saves[i].name == name {
			return i
		}
	}
	return -1
}

// watch prepares for a statement whose failure may not be seen.
func (t *Tx) watch(ctx context.Context) error {
	t.mu.Lock()
	t.hidden = true
	t.mu.Unlock()
	return t.conn.Watch(ctx)
}

// inside proves that the server has not ended the transaction unseen.
func (t *Tx) inside(ctx context.Context) error {
	t.mu.Lock()
	hidden := t.hidden
	t.hidden = t.raw
	t.mu.Unlock()
	if !hidden {
		return nil
	}
	return t.conn.Inside(ctx)
}

// learn takes from a statement's error what it did to the transaction, and returns it.
func (t *Tx) learn(ctx context.Context, err error) error {
	after := dberr.After(string(t.dialect), err)
	if t.dialect == SQLite && after == dberr.Unharmed {
		// SQLite ends the whole transaction on some errors (a full disk, an interrupted write, OR
		// ROLLBACK), and asking costs no round trip.
		if inside := t.conn.Inside(context.WithoutCancel(ctx)); inside != nil {
			after = dberr.Gone
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case errors.Is(err, ErrTxAborted) || after == dberr.Gone:
		if t.aborted == nil {
			t.aborted = err
		}
	case after == dberr.Failed:
		if t.failed == nil {
			t.failed = err
		}
	}
	return err
}

// flush runs what is buffered. The buffers are empty afterwards, so after an error there is no way
// but to roll back.
func (t *Tx) flush(ctx context.Context) error {
	stmts, err := t.drain(ctx)
	if err == nil && len(stmts) > 0 {
		if err = t.inside(ctx); err == nil {
			err = ExecAll(ctx, t.conn, stmts)
		}
	}
	if err != nil {
		t.mu.Lock()
		if t.aborted == nil {
			t.aborted = err
		}
		t.mu.Unlock()
	}
	return err
}

// drain collects what is buffered.
func (t *Tx) drain(ctx context.Context) ([]Statement, error) {
	t.mu.Lock()
	parts := t.parts
	t.mu.Unlock()
	var all []Statement
	for _, p := range parts {
		if f, ok := p.value.(Flusher); ok {
			stmts, err := f.Flush(ctx)
			if err != nil {
				return nil, err
			}
			all = append(all, stmts...)
		}
	}
	return all, nil
}

// ExecAll runs the statements one by one, with their checks.
func ExecAll(ctx context.Context, q Querier, stmts []Statement) error {
	for _, s := range stmts {
		var n int64
		var err error
		if s.Row != nil {
			err = q.Query(ctx, s.SQL, s.Args, s.Row)
		} else {
			n, err = q.Exec(ctx, s.SQL, s.Args...)
		}
		if s.Check != nil {
			err = s.Check(n, err)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// rollbackTimeout bounds a ROLLBACK; when it is over the connection is closed instead.
const rollbackTimeout = 5 * time.Second

// ForRollback returns the context of a ROLLBACK, which must be sent although ctx may have ended.
func ForRollback(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), rollbackTimeout)
}
