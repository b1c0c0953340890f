package pgxtx

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/internal/dberr"
	"github.com/millrace-go/millrace/internal/txn"
)

// conn is one transaction of pgx as the state machine sees it.
type conn struct {
	pooled *pgxpool.Conn
	*pgx.Conn
	*session
	text string // BEGIN, with the options

	begun   bool   // BEGIN was sent
	used    bool   // there was a statement
	stale   string // a prepared statement that is not to be used again
	objects bool   // pgx's own transaction was given away, and must be the one that ends
}

func (c *conn) exec(ctx context.Context, sql string, args []any) (pgconn.CommandTag, error) {
	switch o, err := c.first(ctx, sql, args, true); {
	case err != nil:
		return pgconn.CommandTag{}, err
	case o != nil:
		return o.exec()
	}
	return c.Conn.Exec(ctx, sql, args...)
}

func (c *conn) query(ctx context.Context, sql string, args []any) (pgx.Rows, error) {
	switch o, err := c.first(ctx, sql, args, false); {
	case err != nil:
		return failed{err: err}, err
	case o != nil:
		return o.query(), nil // as pgx has it, an error comes with the rows
	}
	return c.Conn.Query(ctx, sql, args...)
}

// queryRow returns an error only if it comes from BEGIN; that of the statement comes with Scan.
func (c *conn) queryRow(ctx context.Context, sql string, args []any) (pgx.Row, error) {
	switch o, err := c.first(ctx, sql, args, false); {
	case err != nil:
		return nil, err
	case o != nil:
		return firstRow{o.query()}, nil
	}
	return c.Conn.QueryRow(ctx, sql, args...), nil
}

func (c *conn) Exec(ctx context.Context, query string, args ...any) (int64, error) {
	tag, err := c.exec(ctx, query, args)
	return tag.RowsAffected(), err
}

func (c *conn) Query(ctx context.Context, query string, args []any, row func(txn.Scanner) error) error {
	rows, err := c.query(ctx, query, args)
	return each(rows, err, row)
}

// Watch implements txn.Conn: pgx knows from each answer whether it is inside a transaction.
func (c *conn) Watch(context.Context) error       { return nil }
func (c *conn) Savepointed(context.Context) error { return nil }

// Inside implements txn.Conn.
func (c *conn) Inside(context.Context) error {
	pg := c.PgConn()
	switch status := pg.TxStatus(); {
	case c.IsClosed():
		return because(millrace.ErrTxAborted, "the connection was lost")
	case pg.IsBusy():
		return because(millrace.ErrConcurrentUse, "rows or a batch were left open")
	case !c.begun:
	case status == 'E':
		return because(millrace.ErrTxAborted, "a statement has failed")
	case status != 'T':
		return txn.Because(millrace.ErrTxAborted, txn.ErrOutside)
	}
	return nil
}

func because(err error, text string) error { return txn.Because(err, errors.New(text)) }

// together is how many statements at most share the round trip of COMMIT: the last of a flush, and the
// witness.
const together = 2

// Commit implements txn.Conn. The last statements and COMMIT make one round trip.
func (c *conn) Commit(ctx context.Context, stmts []txn.Statement, timeout time.Duration) (txn.Outcome, error) {
	ahead := stmts
	for n := len(stmts); n > 0 && n > len(stmts)-together && !stmts[n-1].Alone && !c.objects; n-- {
		ahead = stmts[:n-1]
	}
	err := c.Inside(ctx)
	if err == nil {
		err = c.run(ctx, ahead)
	}
	if err == nil {
		err = ctx.Err()
	}
	if err == nil && len(ahead) < len(stmts) {
		// Alone, though the three could share a round trip: when the pool's connection is dead, which shows here,
		// nobody has to wonder what became of COMMIT.
		err = c.begin(ctx)
	}
	if err != nil {
		_ = c.Rollback(ctx) // what made it necessary says more
		return txn.RolledBack, err
	}
	if !c.begun { // there was nothing to do
		c.pooled.Release()
		return txn.Committed, nil
	}
	// The limit is set on the socket: a pipeline whose connection dies never stops watching its context
	// (pgx 5.8), so it gets one that cannot end.
	ctx = context.WithoutCancel(ctx)
	_ = c.PgConn().Conn().SetDeadline(time.Now().Add(timeout)) // fails on a dead connection, which COMMIT notices
	var outcome txn.Outcome
	if c.objects {
		outcome, err = c.judge(c.tx.Commit(ctx))
		c.tx, c.objects = nil, false
	} else {
		outcome, err = c.last(ctx, stmts[len(ahead):])
	}
	_ = c.PgConn().Conn().SetDeadline(time.Time{})
	if outcome == txn.RolledBack && !c.IsClosed() && c.PgConn().TxStatus() != 'I' {
		_ = c.Rollback(ctx)
	}
	c.pooled.Release() // which closes a connection that is not idle
	return outcome, err
}

// run executes what does not fit into COMMIT's round trip.
func (c *conn) run(ctx context.Context, stmts []txn.Statement) error {
	return txn.ExecAll(ctx, c, stmts)
}

// last sends the statements and COMMIT. When a statement fails, the server skips what follows it.
func (c *conn) last(ctx context.Context, stmts []txn.Statement) (txn.Outcome, error) {
	var b pgx.Batch
	for _, s := range stmts {
		b.Queue(s.SQL, s.Args...)
	}
	b.Queue("commit")
	results := c.SendBatch(ctx, &b)
	for _, s := range stmts {
		if _, err := results.Exec(); err != nil {
			_ = results.Close() // the same error
			outcome, named := c.judge(err)
			if s.Check != nil {
				if e := s.Check(0, err); e != nil {
					named = e
				}
			}
			return outcome, named
		}
	}
	tag, err := results.Exec()
	if e := results.Close(); err == nil {
		err = e
	}
	switch {
	case err != nil:
		return c.judge(err)
	case tag.String() == "COMMIT":
		return txn.Committed, nil
	case tag.String() == "ROLLBACK":
		return txn.RolledBack, because(millrace.ErrTxAborted, "a statement has failed")
	}
	return txn.Unknown, fmt.Errorf("COMMIT was answered %q", tag.String())
}

// judge reads the outcome from the error of COMMIT, or of a statement sent with it. A connection that
// is still inside the transaction has not committed it.
func (c *conn) judge(err error) (txn.Outcome, error) {
	switch {
	case err == nil:
		return txn.Committed, nil
	case dberr.NotCommitted(string(txn.Postgres), err), errors.Is(err, pgx.ErrTxCommitRollback),
		!c.IsClosed() && !c.PgConn().IsBusy() && c.PgConn().TxStatus() != 'I':
		return txn.RolledBack, fmt.Errorf("pgxtx: commit: %w", err)
	}
	return txn.Unknown, err
}

// Rollback implements txn.Conn.
func (c *conn) Rollback(ctx context.Context) error {
	defer c.pooled.Release()
	if c.IsClosed() || !c.begun {
		return nil // the server rolls back
	}
	ctx, cancel := txn.ForRollback(ctx)
	defer cancel()
	var err error
	if c.objects {
		err = c.tx.Rollback(ctx)
		c.tx, c.objects = nil, false
	} else {
		_, err = c.Conn.Exec(ctx, "rollback")
	}
	if err == nil && c.stale != "" {
		err = c.Deallocate(ctx, c.stale)
	}
	if err != nil && !c.IsClosed() {
		cancel() // it is not worth waiting for
		_ = c.Close(ctx)
	}
	return err
}
