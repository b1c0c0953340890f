package txn

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/millrace-go/millrace/internal/dberr"
)

// Run runs fn as o.Propagation says: in a new transaction, in the open one, or in none, when it gets a
// nil Tx.
func Run(ctx context.Context, p Beginner, o Options, fn func(context.Context, *Tx) error) error {
	if err := o.check(); err != nil {
		return err
	}
	open, isOpen := From(ctx, p)
	if isOpen {
		if err := open.Err(); errors.Is(err, ErrTxCompleted) {
			return err
		}
	}
	switch o.Propagation {
	case Mandatory:
		if !isOpen {
			return ErrNoTransaction
		}
	case Never:
		if isOpen {
			return ErrTransactionOpen
		}
		return fn(ctx, nil)
	case NotSupported:
		if isOpen {
			ctx = with(ctx, p.Identity(), nil)
		}
		return fn(ctx, nil)
	case Supports:
		if !isOpen {
			return fn(ctx, nil)
		}
	case Nested:
		if isOpen {
			return open.nested(ctx, fn)
		}
	case RequiresNew:
		isOpen = false
	}
	if isOpen {
		return open.join(ctx, o, fn)
	}
	return outermost(ctx, p, o, fn)
}

// join runs fn as a part of t.
func (t *Tx) join(ctx context.Context, o Options, fn func(context.Context, *Tx) error) error {
	if o.Isolation != sql.LevelDefault && o.Isolation != t.options.Isolation {
		return fmt.Errorf("%w: the open transaction was not begun with isolation %v", ErrUnsupported, o.Isolation)
	}
	returned := false
	defer func() {
		if !returned {
			t.Spoil(errLeft)
		}
	}()
	err := fn(ctx, t)
	returned = true
	if err != nil {
		t.Spoil(err)
	}
	return err
}

// errLeft stands for a panic or a runtime.Goexit, which go on by themselves.
var errLeft = errors.New("panic or runtime.Goexit")

// Spoil marks the transaction, or the open savepoint, for rollback.
func (t *Tx) Spoil(cause error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.rollbackOnly == nil {
		t.rollbackOnly = cause
	}
}

// SavepointName is a new name for a savepoint.
func (t *Tx) SavepointName() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.serial++
	return fmt.Sprintf("millrace_%d", t.serial)
}

// nested runs fn between SAVEPOINT and RELEASE.
func (t *Tx) nested(ctx context.Context, fn func(context.Context, *Tx) error) (err error) {
	name := t.SavepointName()
	exec := func(ctx context.Context, verb string) error {
		text := verb + " " + name
		return t.Do(ctx, text, false, func() error { _, err := t.conn.Exec(ctx, text); return err })
	}
	if err := exec(ctx, "SAVEPOINT"); err != nil {
		return err
	}
	undo := func(cause error) error {
		ctx, cancel := ForRollback(ctx)
		defer cancel()
		err := exec(ctx, "ROLLBACK TO SAVEPOINT")
		if err == nil {
			err = exec(ctx, "RELEASE SAVEPOINT")
		}
		if err != nil { // the part cannot be undone alone
			t.abort(err)
			return errors.Join(cause, err)
		}
		return cause
	}
	returned := false
	defer func() {
		if !returned {
			_ = undo(errLeft) // the panic goes on
		}
	}()
	err = fn(ctx, t)
	returned = true
	if err == nil {
		err = ctx.Err()
	}
	t.mu.Lock()
	giveUp, spoiled := t.giveUp, t.rollbackOnly
	t.mu.Unlock()
	switch {
	case err != nil:
		return undo(err)
	case giveUp:
		return undo(nil)
	case spoiled != nil:
		return undo(Because(ErrUnexpectedRollback, spoiled))
	}
	if err := t.Err(); err != nil {
		return undo(err)
	}
	return exec(ctx, "RELEASE SAVEPOINT")
}

func (t *Tx) abort(cause error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.aborted == nil {
		t.aborted = cause
	}
}

// outermost runs fn in a transaction of its own, again if asked to and if it certainly rolled back.
func outermost(ctx context.Context, p Beginner, o Options, fn func(context.Context, *Tx) error) error {
	if d := depth(ctx); d > maxDepth {
		return fmt.Errorf("%w: transactions in hooks of transactions, %d deep", ErrUnsupported, d)
	}
	for attempt := 0; ; attempt++ {
		outcome, err := once(ctx, p, o, fn)
		if outcome != RolledBack || attempt >= o.Retries || ctx.Err() != nil || !dberr.Retryable(err) {
			return err
		}
	}
}

func once(ctx context.Context, p Beginner, o Options, fn func(context.Context, *Tx) error) (outcome Outcome, err error) {
	if err := ctx.Err(); err != nil {
		return RolledBack, err
	}
	dialect, err := p.Dialect(ctx)
	if err != nil {
		return Unknown, err
	}
	conn, err := begin(ctx, p, o)
	if err != nil {
		return RolledBack, err
	}
	t := &Tx{pool: p, conn: conn, dialect: dialect, options: o, settings: p.Settings()}
	if t.options.CommitTimeout == 0 {
		t.options.CommitTimeout = t.settings.CommitTimeout
	}
	inner, cancel := context.WithCancel(with(ctx, p.Identity(), t))
	t.ctx, t.cancel = inner, cancel
	returned := false
	defer func() {
		if !returned {
			_, _ = t.end(ctx, errLeft)
		}
	}()
	err = fn(inner, t)
	if err == nil && t.mayCommit(ctx) {
		err = t.beforeCommit(inner)
	}
	returned = true
	return t.end(ctx, err)
}

// begin waits for a connection as long as ctx lasts, but not while the caller holds another one: with enough such
// callers nobody would ever give one back.
func begin(ctx context.Context, p Beginner, o Options) (Conn, error) {
	if !holds(ctx, p.Identity()) {
		return p.Begin(ctx, o)
	}
	if p.Single() {
		return nil, fmt.Errorf("%w: a second transaction would wait for ever for the open one", ErrUnsupported)
	}
	limit := p.Settings().SecondTimeout
	short, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	conn, err := p.Begin(short, o)
	if err != nil && short.Err() != nil && ctx.Err() == nil {
		return nil, fmt.Errorf("%w within %v, while the transaction around it holds the first: raise the pool's limit", ErrPoolExhausted, limit)
	}
	return conn, err
}

// end completes the transaction and runs what waits for it.
func (t *Tx) end(ctx context.Context, cause error) (Outcome, error) {
	outcome, err := t.complete(ctx, cause)
	t.conclude(ctx, outcome)
	return outcome, err
}

// complete commits, or rolls back because of cause or of what the transaction has been through.
func (t *Tx) complete(ctx context.Context, cause error) (Outcome, error) {
	t.mu.Lock()
	verdict := t.verdict()
	giveUp := t.giveUp && cause == nil
	t.status = completing
	t.mu.Unlock()
	if !t.use.TryLock() {
		// A goroutine that fn left behind is still at it. Its context is the only handle on it.
		verdict = Because(ErrConcurrentUse, errors.New("a statement was running when fn returned"))
		t.cancel()
		t.use.Lock()
	}
	defer t.use.Unlock()
	if cause == nil && ctx.Err() != nil {
		cause = ctx.Err()
	}
	if cause == nil && !(giveUp && errors.Is(verdict, ErrUnexpectedRollback)) { // who asked for the rollback expects it
		cause = verdict
	}
	var stmts []Statement
	if cause == nil && !giveUp {
		stmts, cause = t.drain(ctx)
	}
	if cause == nil && !giveUp {
		cause = t.inside(ctx)
	}
	if cause != nil || giveUp {
		err := t.rollback(ctx, cause)
		if errors.Is(cause, ErrOutside) && t.mayHaveCommitted() {
			return Unknown, &UnknownError{Cause: err}
		}
		return RolledBack, err
	}
	witness, last := t.newWitness()
	outcome, err := t.conn.Commit(ctx, append(stmts, last...), t.options.CommitTimeout)
	switch {
	case outcome == Unknown:
		return t.resolve(ctx, witness, err)
	case outcome == Committed:
		err = nil
	}
	return outcome, missingTable(err)
}

// mayCommit says whether BeforeCommit hooks are worth running.
func (t *Tx) mayCommit(ctx context.Context) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return ctx.Err() == nil && !t.giveUp && t.verdict() == nil
}

// verdict is why the transaction cannot commit.
func (t *Tx) verdict() error {
	if err := t.err(); err != nil {
		return err
	}
	if t.rollbackOnly != nil {
		return Because(ErrUnexpectedRollback, t.rollbackOnly)
	}
	return nil
}

// mayHaveCommitted says whether a COMMIT may have gone past us.
func (t *Tx) mayHaveCommitted() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.strange
}

// settled is why the server has ended the transaction already.
func (t *Tx) settled() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.aborted
}

func (t *Tx) rollback(ctx context.Context, cause error) error {
	if err := t.conn.Rollback(ctx); err != nil && t.settled() == nil {
		t.settings.Logger.Warn("rollback failed, connection closed", "err", err)
		if cause != nil {
			return errors.Join(cause, err)
		}
	}
	return cause
}
