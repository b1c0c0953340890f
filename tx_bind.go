package millrace

import (
	"context"
	"database/sql"

	"github.com/millrace-go/millrace/internal/txn"
)

// ForeignTx is a transaction that somebody else begins and ends: a *sql.Tx, or what an ORM gives its
// users on one (gorm's ConnPool, ent's and sqlx's Tx). It must hand query and args to the database as they
// are. bun's Tx does not: give the *sql.Tx that is in it.
type ForeignTx interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

// Binding ties one ForeignTx to hooks and to the outbox.
type Binding struct{ b *txn.Binding }

// Bind gives hooks and the outbox to a transaction that an ORM begins and ends. around runs the ORM's
// own transaction function, and inside of it Binding.Run:
//
//	err := millrace.Bind(ctx, db, func(ctx context.Context, b *millrace.Binding) error {
//		return orm.Transaction(func(tx *orm.Tx) error { // commits if it gets nil, and returns the error of COMMIT
//			return b.Run(ctx, tx, func(ctx context.Context) error {
//				// tx for the data; ctx for hooks, events and Publish
//			})
//		})
//	})
//
// db is the database that the ORM works on. When around returns, the outcome is read from it: nil after
// a Run that returned nil is Committed, an error of Run RolledBack; an error after a Run that returned
// nil is Unknown, unless it is the database's definite refusal of COMMIT. Then the hooks run, and Bind
// returns around's error, inside an *UnknownOutcomeError if the outcome is Unknown.
//
// The folder examples has it ready for gorm, ent, bun and sqlx.
//
// What the ORM does with savepoints is not seen: messages are written at once, so that they share the
// fate of the data, but hooks registered inside of a savepoint that the ORM rolls back still run.
func Bind(ctx context.Context, db *SQLDB, around func(ctx context.Context, b *Binding) error) error {
	return txn.Bind(ctx, db.pool, func(ctx context.Context, b *txn.Binding) error {
		return around(ctx, &Binding{b})
	})
}

// Run runs fn with a context that carries the transaction, then the BeforeCommit hooks. The owner must
// commit if it returns nil, and roll back otherwise. It can be called once.
//
// fn has the ORM's handle already. Code that wants a *Tx gets it from InTx with fn's context, which joins.
func (b *Binding) Run(ctx context.Context, tx ForeignTx, fn func(ctx context.Context) error) error {
	return b.b.Run(ctx, &sqlConn{dialect: b.b.Dialect(), on: tx, raw: true}, fn)
}
