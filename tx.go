package millrace

import (
	"context"

	"github.com/millrace-go/millrace/internal/txn"
)

// DB is a database on which transactions are begun with InTx: what SQL and pgxtx.Pool return. The
// outbox and the inbox take one. It cannot be implemented outside of millrace.
type DB interface {
	TxnPool() txn.Pool
}

// TxDB is a DB whose transactions are used through a T: *Tx for SQL, pgx.Tx for pgxtx.Pool.
type TxDB[T any] interface {
	DB
	TxnBeginner() txn.Beginner
	// Handle returns what fn uses of the transaction, or, of nil, what runs without one.
	Handle(t *txn.Tx) T
}

// Outcome is how a transaction ended.
type Outcome int

const (
	// Unknown means that the answer to COMMIT never came: the transaction may have committed or not.
	Unknown = Outcome(txn.Unknown)
	// Committed means that the database has confirmed the commit.
	Committed = Outcome(txn.Committed)
	// RolledBack means that nothing of the transaction remains.
	RolledBack = Outcome(txn.RolledBack)
)

// String is "committed", "rolled back" or "unknown".
func (o Outcome) String() string { return txn.Outcome(o).String() }

// InTx runs fn in a transaction of db and commits it if fn returns nil. If fn returns an error,
// panics or ends its goroutine, the transaction is rolled back and the error or the panic goes on to
// the caller. The hooks registered inside run when the outcome is certain and the connection is back in
// its pool, before InTx returns.
//
// InTx returns nil if, and only if, the database confirmed the commit; no failing hook changes that. An
// *UnknownOutcomeError says that the answer to COMMIT never came: the transaction may have committed.
// After any other error nothing of it remains. MarkRollbackOnly is the one way to a rollback without
// an error.
//
// Inside of a transaction of the same database InTx joins it: fn's error marks it for rollback, and if
// the outer fn ignores that error, the outer InTx returns ErrUnexpectedRollback. Nested, RequiresNew
// and the other propagation options choose otherwise.
//
// The context that fn gets carries the transaction and ends with it. Work in fn's own goroutine only,
// or hand the transaction from one goroutine to the next: a statement begun while another runs is
// refused with ErrConcurrentUse. When ctx ends before COMMIT is sent, the transaction is rolled back;
// later, the outcome is the database's.
func InTx[T any](ctx context.Context, db TxDB[T], fn func(ctx context.Context, tx T) error, opts ...TxOption) error {
	var o txn.Options
	for _, opt := range opts {
		opt(&o)
	}
	return txn.Run(ctx, db.TxnBeginner(), o, func(ctx context.Context, t *txn.Tx) error {
		return fn(ctx, db.Handle(t))
	})
}

// MarkRollbackOnly has the transaction in ctx roll back when its fn returns, also if that returns nil;
// InTx then returns nil. Inside of Nested it is that part alone which is rolled back.
func MarkRollbackOnly(ctx context.Context, opts ...HookOption) error {
	t, err := current(ctx, opts)
	if err != nil {
		return err
	}
	return t.MarkRollbackOnly()
}
