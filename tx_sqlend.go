package millrace

import (
	"context"
	"fmt"
	"time"

	"github.com/millrace-go/millrace/internal/dberr"
	"github.com/millrace-go/millrace/internal/txn"
)

// Commit implements txn.Conn.
func (c *sqlConn) Commit(ctx context.Context, stmts []txn.Statement, timeout time.Duration) (txn.Outcome, error) {
	err := txn.ExecAll(ctx, c, stmts)
	if err == nil {
		err = c.calm(ctx)
	}
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		_ = c.Rollback(ctx) // what made it necessary says more
		return txn.RolledBack, err
	}
	err = c.commit(ctx, timeout)
	switch {
	case err == nil:
		return txn.Committed, nil
	case dberr.NotCommitted(string(c.dialect), err) || refused(err):
		return txn.RolledBack, fmt.Errorf("millrace: commit: %w", err)
	}
	return txn.Unknown, err
}

// commit sends COMMIT and waits for the answer. lib/pq and go-sql-driver wait for it without limit, so
// for them it is a goroutine that waits. When it has waited long enough, the connection is closed if the
// driver allows that, and otherwise stays with the goroutine.
func (c *sqlConn) commit(ctx context.Context, timeout time.Duration) error {
	if c.heeds {
		timer := time.AfterFunc(timeout, c.cancel)
		defer timer.Stop()
		defer c.end()
		return c.tx.Commit()
	}
	answer := make(chan error, 1)
	go func() {
		err := c.say(context.WithoutCancel(ctx), timeout)
		c.end()
		answer <- err
	}()
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case err := <-answer:
		return err
	case <-timer.C:
		c.hangUp()
		return fmt.Errorf("no answer within %v", timeout)
	}
}

// say sends COMMIT. go-sql-driver heeds the context of a statement only, so that COMMIT is one where the outcome will
// have to be looked for on a connection that the pool does not have. Rollback then gives this one back, at the price
// of a round trip.
func (c *sqlConn) say(ctx context.Context, timeout time.Duration) error {
	if c.dialect != txn.MySQL || !c.pool.lacksAnother() { // PostgreSQL may answer ROLLBACK, which is no error of a statement
		return c.tx.Commit()
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	_, err := c.on.ExecContext(ctx, "COMMIT")
	_ = c.tx.Rollback()
	return err
}

// hangUp has the goroutine that waits for the server give up, where the driver lets it, so that the pool has room for
// another connection. A driver that is wrapped in another one may yet heed the context.
func (c *sqlConn) hangUp() {
	if c.wire != nil {
		_ = c.wire.Close()
		return
	}
	c.cancel()
}

// calm undoes what a read-only SQLite transaction has set on its connection.
func (c *sqlConn) calm(ctx context.Context) error {
	if c.dialect != txn.SQLite || !c.readOnly {
		return nil
	}
	_, err := c.on.ExecContext(ctx, "PRAGMA query_only = OFF")
	return err
}

// refused recognizes how the drivers say that COMMIT was answered ROLLBACK, in a transaction that had
// failed: an error of their own each, without a type that can be named here.
func refused(err error) bool {
	switch err.Error() {
	case "commit unexpectedly resulted in rollback", // pgx
		"pq: Could not complete operation in a failed transaction",
		"pq: could not complete operation in a failed transaction":
		return true
	}
	return false
}

// Rollback implements txn.Conn.
func (c *sqlConn) Rollback(ctx context.Context) error {
	ctx, cancel := txn.ForRollback(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_ = c.calm(ctx)
		err := c.tx.Rollback()
		c.end()
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		c.hangUp()
		return ctx.Err()
	}
}
