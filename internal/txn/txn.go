// Package txn is the state of one transaction: who is in it, what it has buffered, what runs when it
// ends. The root package and pgxtx drive it; outbox and dedup take part in it. It names no driver.
package txn

import (
	"context"
	"time"
)

// Dialect is the kind of database behind a Pool.
type Dialect string

const (
	Postgres Dialect = "postgres"
	MySQL    Dialect = "mysql" // also MariaDB
	SQLite   Dialect = "sqlite"
)

// Scanner is the row that a Query hands out.
type Scanner interface {
	Scan(dest ...any) error
}

// Querier runs statements. On a Pool each is a transaction of its own; on a *Tx they belong to it.
type Querier interface {
	// Exec runs a statement and returns the number of rows it changed.
	Exec(ctx context.Context, sql string, args ...any) (int64, error)
	// Query calls row once for each row of the answer. It returns the first error of row, of the
	// query, or of reading on, and leaves nothing open.
	Query(ctx context.Context, sql string, args []any, row func(Scanner) error) error
}

// Pool is one database as transactions are begun on it.
type Pool interface {
	Querier
	// Identity is the *sql.DB or *pgxpool.Pool itself: two wrappers of one handle are one Pool.
	Identity() any
	// Dialect asks the database what it is, once.
	Dialect(ctx context.Context) (Dialect, error)
}

// Statement is one write that a participant wants executed with the transaction's COMMIT.
type Statement struct {
	SQL  string
	Args []any
	// Check, if set, sees the number of rows changed or the error, and returns the error that the
	// transaction fails with, or nil. Where COMMIT travels in the same round trip the server has
	// already answered it: there Check is called only with an error, to name it.
	Check func(rows int64, err error) error
	// Row, if set, is called with the row that the statement returns. Where COMMIT travels in the same round trip
	// that would be too late to be of use, and it is not called.
	Row func(Scanner) error
	// Alone makes Check decide before COMMIT is sent, also on a row count, at the price of a round trip.
	Alone bool
}

// Flusher is a participant that buffers writes until COMMIT.
type Flusher interface {
	// Flush hands over what is buffered and forgets it. It is called after the last BeforeCommit
	// hook and before each savepoint, by one goroutine at a time.
	Flush(ctx context.Context) ([]Statement, error)
}

// Beginner is a Pool on which Run can begin transactions.
type Beginner interface {
	Pool
	// Begin begins a transaction. ctx bounds waiting for a connection and BEGIN itself; the
	// transaction does not end with it.
	Begin(ctx context.Context, o Options) (Conn, error)
	// Single is true if there cannot be a second transaction beside one.
	Single() bool
	// Settings are the same for every transaction of the Pool.
	Settings() *Settings
}

// Lender is a Pool that lends a connection as it is, for what begins and ends a transaction of its own in fewer
// round trips than Begin.
type Lender interface {
	// Lend runs the statement first on a connection, and if that succeeds fn on the same one. A connection that fn does not
	// call clean is closed, which makes the server roll back.
	Lend(ctx context.Context, first string, fn func(Querier) (clean bool, err error)) error
}

// Conn is one open transaction at the driver. It guards nothing; Tx does. One goroutine at a time.
type Conn interface {
	Querier
	// Watch is called before a statement whose failure the caller may hide (rows, prepared
	// statements, procedures), so that Inside can tell afterwards.
	Watch(ctx context.Context) error
	// Inside proves that the connection is still inside the transaction. An error wraps
	// ErrTxAborted if the transaction is over.
	Inside(ctx context.Context) error
	// Savepointed is called after each successful savepoint statement.
	Savepointed(ctx context.Context) error
	// Commit runs the statements and COMMIT. ctx bounds the statements that go ahead of COMMIT's
	// round trip; commit is how long COMMIT may take, whatever happens to ctx. An error with
	// RolledBack means that the server did not commit; the connection is gone back in any case.
	Commit(ctx context.Context, stmts []Statement, commit time.Duration) (Outcome, error)
	// Rollback ends the transaction, also when ctx has ended, and gives the connection back. If ROLLBACK cannot be sent, the
	// connection is closed, which makes the server roll back.
	Rollback(ctx context.Context) error
}

// Outcome is how a transaction ended.
type Outcome int

const (
	// Unknown means that the answer to COMMIT never came: it may have committed or not.
	Unknown Outcome = iota
	Committed
	RolledBack
)

func (o Outcome) String() string {
	switch o {
	case Committed:
		return "committed"
	case RolledBack:
		return "rolled back"
	default:
		return "unknown"
	}
}
