package txn

import (
	"errors"
	"fmt"
)

// The errors of the root package, which documents them.
var (
	ErrNoTransaction        = errors.New("millrace: no transaction in the context")
	ErrAmbiguousTransaction = errors.New("millrace: transactions of several databases are open; name one with For")
	ErrTxCompleted          = errors.New("millrace: transaction has ended")
	ErrTxAborted            = errors.New("millrace: transaction was aborted")
	ErrConcurrentUse        = errors.New("millrace: transaction used by two goroutines at once")
	ErrUnexpectedRollback   = errors.New("millrace: transaction was rolled back because an inner part of it failed")
	ErrImplicitCommit       = errors.New("millrace: statement would commit the transaction")
	ErrTxControl            = errors.New("millrace: statement would begin or end a transaction")
	ErrReadOnly             = errors.New("millrace: transaction is read-only")
	ErrUnsupported          = errors.New("millrace: not supported")
	ErrTransactionOpen      = errors.New("millrace: a transaction is open")
	ErrPoolExhausted        = errors.New("millrace: no second connection for RequiresNew")
	ErrHookOverrun          = errors.New("millrace: hook overran its deadline")
	ErrHookExited           = errors.New("millrace: hook ended its goroutine")

	// ErrOutside is what Conn.Inside wraps, together with ErrTxAborted, when the connection is alive
	// and not in the transaction any more.
	ErrOutside = errors.New("the connection is not inside the transaction any more")
)

// UnknownError says that the answer to COMMIT never came.
type UnknownError struct{ Cause error }

func (e *UnknownError) Error() string {
	return fmt.Sprintf("millrace: commit: outcome unknown: %v", e.Cause)
}

func (e *UnknownError) Unwrap() error { return e.Cause }

// PanicError is what a hook that panicked is reported as.
type PanicError struct{ Value any }

func (e *PanicError) Error() string { return fmt.Sprintf("panic: %v", e.Value) }

// Unwrap makes an error that was the panic's value visible to errors.Is.
func (e *PanicError) Unwrap() error {
	err, _ := e.Value.(error)
	return err
}

// wrapped is a sentinel together with the error that explains it.
type wrapped struct{ kind, cause error }

func (w *wrapped) Error() string   { return w.kind.Error() + ": " + w.cause.Error() }
func (w *wrapped) Unwrap() []error { return []error{w.kind, w.cause} }

// Because returns kind, explained by cause if there is one.
func Because(kind, cause error) error {
	if cause == nil || errors.Is(cause, kind) {
		if cause != nil {
			return cause
		}
		return kind
	}
	return &wrapped{kind, cause}
}
