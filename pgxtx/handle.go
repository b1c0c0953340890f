package pgxtx

import (
	"context"
	"errors"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/internal/txn"
)

// handle is the pgx.Tx that fn gets. It refuses what would break the transaction, as *millrace.Tx
// does.
type handle struct {
	t *txn.Tx
	c *conn
}

// Begin sets a savepoint. Hooks and messages follow it: what is rolled back takes them along.
func (h *handle) Begin(ctx context.Context) (pgx.Tx, error) {
	name := h.t.SavepointName()
	if _, err := h.Exec(ctx, "SAVEPOINT "+name); err != nil {
		return nil, err
	}
	return &nested{handle: h, name: name}, nil
}

// Commit is InTx's; the error is to be returned by fn.
func (h *handle) Commit(context.Context) error { return millrace.ErrTxControl }

// Rollback is InTx's. The transaction will not commit.
func (h *handle) Rollback(context.Context) error {
	h.t.Spoil(because(millrace.ErrTxControl, "Rollback was called"))
	return millrace.ErrTxControl
}

func (h *handle) Exec(ctx context.Context, sql string, args ...any) (tag pgconn.CommandTag, err error) {
	err = h.t.Do(ctx, sql, false, func() error {
		tag, err = h.c.exec(ctx, sql, args)
		return err
	})
	return tag, err
}

func (h *handle) Query(ctx context.Context, sql string, args ...any) (rows pgx.Rows, err error) {
	err = h.t.Do(ctx, sql, true, func() error {
		rows, err = h.c.query(ctx, sql, args)
		return err
	})
	if rows == nil {
		rows = failed{err: err}
	}
	return rows, err
}

func (h *handle) QueryRow(ctx context.Context, sql string, args ...any) (row pgx.Row) {
	var err error
	err = h.t.Do(ctx, sql, true, func() error {
		row, err = h.c.queryRow(ctx, sql, args)
		return err
	})
	if err != nil {
		return failed{err: err}
	}
	return row
}

func (h *handle) CopyFrom(ctx context.Context, table pgx.Identifier, columns []string, src pgx.CopyFromSource) (n int64, err error) {
	err = h.t.Do(ctx, "", false, func() error {
		if err = h.c.begin(ctx); err != nil {
			return err
		}
		n, err = h.c.Conn.CopyFrom(ctx, table, columns, src)
		return err
	})
	return n, err
}

func (h *handle) SendBatch(ctx context.Context, b *pgx.Batch) (results pgx.BatchResults) {
	var texts strings.Builder
	for _, q := range b.QueuedQueries {
		texts.WriteString(q.SQL)
		texts.WriteString(";\n")
	}
	err := h.t.Do(ctx, texts.String(), true, func() error {
		if err := h.c.begin(ctx); err != nil {
			return err
		}
		results = h.c.Conn.SendBatch(ctx, b)
		return nil // it comes with the results
	})
	if err != nil {
		if results != nil {
			_ = results.Close()
		}
		return failedBatch{err: err}
	}
	return results
}

func (h *handle) Prepare(ctx context.Context, name, sql string) (d *pgconn.StatementDescription, err error) {
	err = h.t.Do(ctx, sql, false, func() error {
		if err = h.c.begin(ctx); err != nil {
			return err
		}
		d, err = h.c.Conn.Prepare(ctx, name, sql)
		return err
	})
	return d, err
}

// LargeObjects are pgx's own; their statements are not guarded.
func (h *handle) LargeObjects() pgx.LargeObjects {
	if errors.Is(h.raw(), millrace.ErrTxCompleted) {
		return pgx.LargeObjects{}
	}
	h.c.objects = true
	return h.c.tx.LargeObjects()
}

// Conn is the connection itself; what runs there is not guarded, and Begin on it is a mistake. Do not
// keep it.
func (h *handle) Conn() *pgx.Conn {
	_ = h.raw()
	return h.c.Conn
}

// raw is called before statements may run that are not seen. BEGIN has been sent, or the connection is closed.
func (h *handle) raw() error {
	h.t.Raw()
	ctx := h.t.Context()
	err := h.t.Do(context.WithoutCancel(ctx), "", true, func() error { return h.c.begin(ctx) })
	if errors.Is(err, millrace.ErrTxAborted) && !h.c.begun {
		_ = h.c.begin(ctx)
	}
	return err
}

// nested is a savepoint in the shape of a transaction.
type nested struct {
	*handle
	name   string
	closed bool
}

func (n *nested) Commit(ctx context.Context) error { return n.end(ctx, "RELEASE SAVEPOINT ") }

func (n *nested) Rollback(ctx context.Context) error {
	if n.closed {
		return pgx.ErrTxClosed
	}
	if _, err := n.Exec(ctx, "ROLLBACK TO SAVEPOINT "+n.name); err != nil {
		return err
	}
	return n.end(ctx, "RELEASE SAVEPOINT ")
}

func (n *nested) end(ctx context.Context, verb string) error {
	if n.closed {
		return pgx.ErrTxClosed
	}
	_, err := n.Exec(ctx, verb+n.name)
	n.closed = err == nil
	return err
}

// failed answers everything with one error. The interface in it, always nil, is there for methods that a later
// pgx adds to it: an application that raises the version still compiles.
type failed struct {
	pgx.Rows
	err error
}

func (f failed) Scan(...any) error                            { return f.err }
func (f failed) Close()                                       {}
func (f failed) Err() error                                   { return f.err }
func (f failed) CommandTag() pgconn.CommandTag                { return pgconn.CommandTag{} }
func (f failed) FieldDescriptions() []pgconn.FieldDescription { return nil }
func (f failed) Next() bool                                   { return false }
func (f failed) Values() ([]any, error)                       { return nil, f.err }
func (f failed) RawValues() [][]byte                          { return nil }
func (f failed) Conn() *pgx.Conn                              { return nil }
func (f failed) TypeMap() *pgtype.Map                         { return pgtype.NewMap() } // pgx 5.12

// failedBatch is failed for a batch, whose methods have other answers.
type failedBatch struct {
	pgx.BatchResults
	err error
}

func (f failedBatch) Exec() (pgconn.CommandTag, error) { return pgconn.CommandTag{}, f.err }
func (f failedBatch) Query() (pgx.Rows, error)         { return failed{err: f.err}, f.err }
func (f failedBatch) QueryRow() pgx.Row                { return failed{err: f.err} }
func (f failedBatch) Close() error                     { return f.err }
func (f failedBatch) Tx() pgx.Tx                       { return nil } // pgx 5.12

// none is what fn gets where there is no transaction: statements run on the pool, each by itself.
type none struct{ *pgxpool.Pool }

func (n none) Commit(context.Context) error   { return millrace.ErrNoTransaction }
func (n none) Rollback(context.Context) error { return millrace.ErrNoTransaction }
func (n none) LargeObjects() pgx.LargeObjects { return pgx.LargeObjects{} }
func (n none) Conn() *pgx.Conn                { return nil }
func (n none) Prepare(context.Context, string, string) (*pgconn.StatementDescription, error) {
	return nil, millrace.ErrNoTransaction
}
