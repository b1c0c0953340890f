package pgxtx

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/internal/dberr"
	"github.com/millrace-go/millrace/internal/txn"
)

// conn is one transaction of pgx as the state machine sees it.
type conn struct {
	pooled *pgxpool.Conn
	*pgx.Conn
	tx pgx.Tx // pgx's own, for large objects

	objects bool // pgx's own transaction was given away, and must be the one that ends
}

func (c *conn) Exec(ctx context.Context, query string, args ...any) (int64, error) {
	tag, err := c.Conn.Exec(ctx, query, args...)
	return tag.RowsAffected(), err
}

func (c *conn) Query(ctx context.Context, query string, args []any, row func(txn.Scanner) error) error {
	return each(ctx, c.Conn, query, args, row)
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
	if err != nil {
		_ = c.Rollback(ctx) // what made it necessary says more
		return txn.RolledBack, err
	}
	// The limit is set on the socket: a pipeline whose connection dies never stops watching its context
	// (pgx 5.8), so it gets one that cannot end.
	ctx = context.WithoutCancel(ctx)
	_ = c.PgConn().Conn().SetDeadline(time.Now().Add(timeout)) // fails on a dead connection, which COMMIT notices
	var outcome txn.Outcome
	if c.objects {
		outcome, err = c.judge(c.tx.Commit(ctx))
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
	if c.IsClosed() {
		return nil // the server rolls back
	}
	ctx, cancel := txn.ForRollback(ctx)
	defer cancel()
	err := c.tx.Rollback(ctx)
	if err != nil && !c.IsClosed() {
		_ = c.Close(ctx)
	}
	return err
}
