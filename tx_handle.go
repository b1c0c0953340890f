package millrace

import (
	"context"
	"database/sql"
	"database/sql/driver"

	"github.com/millrace-go/millrace/internal/txn"
)

// Tx is the transaction that InTx gives to fn on database/sql. It has the methods that sqlc,
// squirrel, gorm (ConnPool), ent (ExecQuerier) and bun run their statements on (sqlx: see examples), and refuses what would
// break the transaction: use after its end (ErrTxCompleted) or after the server gave it up
// (ErrTxAborted), by two goroutines at once (ErrConcurrentUse), BEGIN, COMMIT and ROLLBACK
// (ErrTxControl), and on MySQL statements that commit implicitly (ErrImplicitCommit). SAVEPOINT,
// ROLLBACK TO and RELEASE are allowed and understood.
//
// Under InTx's Supports, NotSupported and Never, where there may be no transaction, statements run on
// the *sql.DB.
type Tx struct {
	t  *txn.Tx
	db *sql.DB
}

type executor interface {
	ForeignTx
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
	PrepareContext(ctx context.Context, query string) (*sql.Stmt, error)
}

func (tx *Tx) executor() executor {
	if tx.t == nil {
		return tx.db
	}
	on := tx.t.Conn().(*sqlConn).on
	if full, ok := on.(executor); ok {
		return full
	}
	return partial{on}
}

// partial is a ForeignTx that only executes and queries.
type partial struct{ ForeignTx }

func (p partial) QueryRowContext(ctx context.Context, _ string, _ ...any) *sql.Row {
	return failedRow(ctx, ErrUnsupported)
}

func (p partial) PrepareContext(context.Context, string) (*sql.Stmt, error) {
	return nil, ErrUnsupported
}

func (tx *Tx) do(ctx context.Context, query string, hides bool, op func() error) error {
	if tx.t == nil {
		return op()
	}
	return tx.t.Do(ctx, query, hides, op)
}

// ExecContext is that of *sql.Tx.
func (tx *Tx) ExecContext(ctx context.Context, query string, args ...any) (res sql.Result, err error) {
	err = tx.do(ctx, query, false, func() error {
		res, err = tx.executor().ExecContext(ctx, query, args...)
		return err
	})
	if err != nil {
		return nil, err
	}
	return res, nil
}

// QueryContext is that of *sql.Tx. Close the rows before the next statement.
func (tx *Tx) QueryContext(ctx context.Context, query string, args ...any) (rows *sql.Rows, err error) {
	err = tx.do(ctx, query, true, func() error {
		rows, err = tx.executor().QueryContext(ctx, query, args...)
		return err
	})
	if err != nil {
		if rows != nil {
			_ = rows.Close()
		}
		return nil, err
	}
	return rows, nil
}

// QueryRowContext is that of *sql.Tx.
func (tx *Tx) QueryRowContext(ctx context.Context, query string, args ...any) (row *sql.Row) {
	err := tx.do(ctx, query, true, func() error {
		row = tx.executor().QueryRowContext(ctx, query, args...)
		return row.Err()
	})
	if row == nil {
		return failedRow(ctx, err)
	}
	return row
}

// PrepareContext is that of *sql.Tx. The statement ends with the transaction.
func (tx *Tx) PrepareContext(ctx context.Context, query string) (stmt *sql.Stmt, err error) {
	err = tx.do(ctx, query, true, func() error {
		stmt, err = tx.executor().PrepareContext(ctx, query)
		return err
	})
	return stmt, err
}

// Exec is ExecContext with the context of the transaction.
func (tx *Tx) Exec(query string, args ...any) (sql.Result, error) {
	return tx.ExecContext(tx.context(), query, args...)
}

// Query is QueryContext with the context of the transaction.
func (tx *Tx) Query(query string, args ...any) (*sql.Rows, error) {
	return tx.QueryContext(tx.context(), query, args...)
}

// QueryRow is QueryRowContext with the context of the transaction.
func (tx *Tx) QueryRow(query string, args ...any) *sql.Row {
	return tx.QueryRowContext(tx.context(), query, args...)
}

// Prepare is PrepareContext with the context of the transaction.
func (tx *Tx) Prepare(query string) (*sql.Stmt, error) {
	return tx.PrepareContext(tx.context(), query)
}

func (tx *Tx) context() context.Context {
	if tx.t == nil {
		return context.Background() // what database/sql does in its methods of these names
	}
	return tx.t.Context()
}

// Unwrap returns the driver's own transaction, for code that wants a *sql.Tx; nil where there is none, and
// under Bind, where the caller has it.
// From then on nothing is known of what runs there: messages published before are written now, later
// ones at once instead of just before COMMIT, and Commit and Rollback remain InTx's.
func (tx *Tx) Unwrap() *sql.Tx {
	if tx.t == nil {
		return nil
	}
	tx.t.Raw()
	c := tx.t.Conn().(*sqlConn)
	c.raw = true
	return c.tx
}

// failedRow is a *sql.Row whose Scan returns err: it cannot be made in another way.
func failedRow(ctx context.Context, err error) *sql.Row {
	db := sql.OpenDB(failing{err})
	defer db.Close()
	return db.QueryRowContext(context.WithoutCancel(ctx), "")
}

// failing is a connector that never connects.
type failing struct{ err error }

func (f failing) Connect(context.Context) (driver.Conn, error) { return nil, f.err }
func (f failing) Driver() driver.Driver                        { return f }
func (f failing) Open(string) (driver.Conn, error)             { return nil, f.err }
