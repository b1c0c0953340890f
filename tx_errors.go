package millrace

import "github.com/millrace-go/millrace/internal/txn"

var (
	// ErrNoTransaction: there is no open transaction in the context. Hooks get a context without one.
	ErrNoTransaction = txn.ErrNoTransaction
	// ErrAmbiguousTransaction: transactions of several databases are open; name one with For.
	ErrAmbiguousTransaction = txn.ErrAmbiguousTransaction
	// ErrTransactionOpen: Never was asked for, or something that would wait for the open transaction.
	ErrTransactionOpen = txn.ErrTransactionOpen
	// ErrTxCompleted: the transaction has ended, or is just committing.
	ErrTxCompleted = txn.ErrTxCompleted
	// ErrTxAborted: the server or a lost connection ended the transaction, or it waits for a rollback
	// after an error. It wraps the error that did it. Nothing more is executed. Of a COMMIT that was not
	// answered it says that the transaction was found rolled back (Config.ResolveTimeout).
	ErrTxAborted = txn.ErrTxAborted
	// ErrConcurrentUse: two goroutines used the transaction at once.
	ErrConcurrentUse = txn.ErrConcurrentUse
	// ErrUnexpectedRollback: a part of the transaction failed and its error was ignored outside. It
	// wraps that error.
	ErrUnexpectedRollback = txn.ErrUnexpectedRollback
	// ErrImplicitCommit: MySQL would commit the transaction before this statement (DDL and others).
	ErrImplicitCommit = txn.ErrImplicitCommit
	// ErrTxControl: BEGIN, COMMIT, ROLLBACK and PREPARE TRANSACTION are InTx's own.
	ErrTxControl = txn.ErrTxControl
	// ErrReadOnly: the transaction was begun read-only.
	ErrReadOnly = txn.ErrReadOnly
	// ErrUnsupported: the database or the driver cannot do this.
	ErrUnsupported = txn.ErrUnsupported
	// ErrPoolExhausted: RequiresNew got no second connection within Config.RequiresNewTimeout, while the
	// transaction around it held the first.
	ErrPoolExhausted = txn.ErrPoolExhausted
	// ErrHookOverrun is reported for a hook that still runs at its deadline.
	ErrHookOverrun = txn.ErrHookOverrun
	// ErrHookExited is reported for a hook that ended its goroutine (runtime.Goexit).
	ErrHookExited = txn.ErrHookExited
)

// UnknownOutcomeError is returned by InTx when the answer to COMMIT never came. The transaction may
// have committed: find out before doing its work again, or have InTx do so (Config.ResolveTimeout). It
// wraps what happened instead.
type UnknownOutcomeError = txn.UnknownError

// PanicError is what a hook that panicked is reported as. It unwraps to the panic's value if that is
// an error.
type PanicError = txn.PanicError
