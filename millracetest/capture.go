// Package millracetest is for suites that wrap every test in a transaction which is rolled back: there
// nothing ever commits, and yet a test wants to see the hooks and the event listeners that the code
// under test would have caused.
//
//	millracetest.RolledBack(t, db, func(ctx context.Context, tx *millrace.Tx) {
//		got, err := millracetest.Capture(ctx, db, func(ctx context.Context) error { return shop.Place(ctx, order) })
//		// got.Outcome, got.Hooks; the rows are there for tx to see
//		failed := got.Run() // calls the hooks
//	})
package millracetest

import (
	"context"
	"testing"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/internal/txn"
)

// Hook is a hook or a listener that is to run after the end of a transaction.
type Hook struct {
	Phase string // "after commit", "after rollback", "after completion"
	Name  string // that given to it, or its function's
}

// Captured is what became of one call that Capture watched.
type Captured struct {
	// Outcome is Committed or RolledBack.
	Outcome millrace.Outcome
	// Hooks are those that run after that outcome, in their order. What was registered in a Nested part
	// or a savepoint that was rolled back is treated as in every transaction.
	Hooks []Hook

	rehearsal *txn.Rehearsal
}

// Capture calls fn as if the transactions that it joins with InTx were one of its own. ctx carries a
// transaction of db, usually that of RolledBack; fn runs in a savepoint of it, so that a failure of fn
// spoils nothing around it, and each Capture knows of its own hooks only. When fn has returned nil, its
// BeforeCommit hooks run; the hooks and listeners for after the end do not, until Run.
//
// The error is what InTx would have returned: that of fn, of a BeforeCommit hook, or
// millrace.ErrUnexpectedRollback. Captured is never nil. A panic of fn goes on.
func Capture(ctx context.Context, db millrace.DB, fn func(ctx context.Context) error) (*Captured, error) {
	t, ok := txn.From(ctx, db.TxnPool())
	if !ok {
		return &Captured{Outcome: millrace.RolledBack}, millrace.ErrNoTransaction
	}
	r, err := txn.Rehearse(ctx, t, fn)
	if r == nil {
		return &Captured{Outcome: millrace.RolledBack}, err
	}
	c := &Captured{Outcome: millrace.Outcome(r.Outcome), rehearsal: r}
	r.Each(func(phase, name string) { c.Hooks = append(c.Hooks, Hook{phase, name}) })
	return c, err
}

// Run calls the captured hooks, once, each kept apart from the others as after a transaction, and returns
// the failures, which OnHookError hears of too. A hook that fails is undone, and it alone. Async hooks run
// like the others.
//
// Here a hook finds the transaction of the test in its context, so that its own InTx joins it and is
// rolled back with the test, and the hooks of that run as well. Therefore what is refused in a real
// hook, to register or to publish without an InTx, is not refused here.
func (c *Captured) Run() []millrace.HookError {
	if c.rehearsal == nil {
		return nil
	}
	var failed []millrace.HookError
	for _, e := range c.rehearsal.Run() {
		failed = append(failed, millrace.HookError(e))
	}
	return failed
}

// RolledBack runs test in a transaction of db that is rolled back when it returns, fails or panics.
func RolledBack[T any](t testing.TB, db millrace.TxDB[T], test func(ctx context.Context, tx T)) {
	t.Helper()
	err := millrace.InTx(t.Context(), db, func(ctx context.Context, tx T) error {
		test(ctx, tx)
		return millrace.MarkRollbackOnly(ctx, millrace.For(db))
	})
	if err != nil {
		t.Errorf("millracetest: %v", err)
	}
}
