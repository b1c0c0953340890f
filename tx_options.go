package millrace

import (
	"database/sql"
	"time"

	"github.com/millrace-go/millrace/internal/txn"
)

// TxOption changes one InTx. Later ones win.
type TxOption func(*txn.Options)

func propagation(p txn.Propagation) TxOption {
	return func(o *txn.Options) { o.Propagation = p }
}

// Required joins the open transaction or begins one. It is the default.
func Required() TxOption { return propagation(txn.Required) }

// RequiresNew begins a transaction of its own, on a second connection, whatever is open. Its hooks run
// when it ends. SQLite refuses it inside of a transaction (ErrUnsupported), because its one writer
// is taken, and so does a pool of one connection. With a pool of n connections, n callers that each hold
// one and want another would wait for ever: after Config.RequiresNewTimeout they get ErrPoolExhausted.
func RequiresNew() TxOption { return propagation(txn.RequiresNew) }

// Nested runs fn between a savepoint and its release, or in a new transaction if none is open. When fn
// fails, what it did is undone and the outer transaction can go on: fn's BeforeCommit and AfterCommit
// hooks are discarded, its AfterRollback and AfterCompletion hooks run when the outer transaction has
// ended, told RolledBack.
func Nested() TxOption { return propagation(txn.Nested) }

// Supports joins the open transaction, or runs fn without one. Without one there are no hooks either:
// registering one is ErrNoTransaction.
func Supports() TxOption { return propagation(txn.Supports) }

// NotSupported runs fn without a transaction; one that is open is set aside meanwhile.
func NotSupported() TxOption { return propagation(txn.NotSupported) }

// Mandatory joins the open transaction, or returns ErrNoTransaction.
func Mandatory() TxOption { return propagation(txn.Mandatory) }

// Never runs fn without a transaction, or returns ErrTransactionOpen.
func Never() TxOption { return propagation(txn.Never) }

// Isolation sets the isolation level of a new transaction. Joining one that was begun with another
// level is refused with ErrUnsupported.
func Isolation(level sql.IsolationLevel) TxOption {
	return func(o *txn.Options) { o.Isolation = level }
}

// ReadOnly begins the transaction read-only. Hooks run as usual; publishing to an outbox is refused.
func ReadOnly() TxOption { return func(o *txn.Options) { o.ReadOnly = true } }

// CommitTimeout is how long COMMIT may take; after that the outcome is Unknown. Zero is the DB's.
func CommitTimeout(d time.Duration) TxOption {
	return func(o *txn.Options) { o.CommitTimeout = d }
}

// Retries runs fn again, up to n times, in a new transaction with new hooks, after a serialization
// failure or a deadlock that certainly rolled back. It has no effect in a transaction that is joined.
// The AfterRollback hooks of each attempt run.
func Retries(n int) TxOption { return func(o *txn.Options) { o.Retries = n } }
