package millrace

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"

	"github.com/millrace-go/millrace/internal/dberr"
	"github.com/millrace-go/millrace/internal/txn"
)

// sqlConn is one transaction of database/sql as the state machine sees it.
type sqlConn struct {
	pool     *sqlPool // not of a foreign transaction
	dialect  txn.Dialect
	readOnly bool
	heeds    bool      // COMMIT ends with cancel
	session  *sql.Conn // that tx runs on, where hangUp is wanted
	wire     io.Closer // the driver's connection of session
	tx       *sql.Tx
	on       ForeignTx          // tx, or a foreign transaction
	cancel   context.CancelFunc // of the context that the *sql.Tx was begun with
	leave    func()             // the SQLite gate
	guarded  bool               // MySQL: the guard savepoint is set
	raw      bool               // Unwrap gave tx away
}

// guard is the savepoint by which MySQL tells whether it has ended the transaction.
const guard = "millrace_guard"

// Numbers of MySQL errors.
const (
	unknownVariable = 1193
	noSavepoint     = 1305
)

// begin begins on a context that only we end: database/sql rolls back, in a goroutine of its own, when
// that of BeginTx ends, and pgx uses it for COMMIT.
func (c *sqlConn) begin(ctx context.Context, p *sqlPool, o txn.Options) error {
	own, cancel := context.WithCancel(context.WithoutCancel(ctx))
	c.cancel = cancel
	stop := context.AfterFunc(ctx, cancel)
	opts := &sql.TxOptions{Isolation: o.Isolation, ReadOnly: o.ReadOnly}
	if c.dialect == txn.SQLite {
		if o.Isolation != sql.LevelDefault && o.Isolation != sql.LevelSerializable {
			return fmt.Errorf("%w: SQLite is always serializable", ErrUnsupported)
		}
		opts.Isolation = sql.LevelDefault
	}
	var tx *sql.Tx
	err := retryBusy(ctx, func() (err error) { // _txlock may make BEGIN itself a writer
		if p.closable {
			tx, err = c.beginSession(own, p.db, opts)
		} else {
			tx, err = p.db.BeginTx(own, opts)
		}
		return err
	})
	if err != nil {
		return err
	}
	c.tx, c.on = tx, tx
	if c.dialect == txn.SQLite {
		err = c.beginSQLite(ctx)
	}
	if err == nil && !stop() {
		err = ctx.Err() // the cancel has hit the transaction as well
	}
	if err != nil {
		_ = tx.Rollback() // the error of BEGIN says more
		return err
	}
	return nil
}

// beginSession begins where hangUp will reach the connection. As *sql.DB does by itself, it passes over
// connections that died in the pool.
func (c *sqlConn) beginSession(ctx context.Context, db *sql.DB, opts *sql.TxOptions) (*sql.Tx, error) {
	for dead := db.Stats().Idle; ; dead-- {
		session, err := db.Conn(ctx)
		if err != nil {
			return nil, err
		}
		err = session.Raw(func(conn any) error {
			c.wire, _ = conn.(io.Closer)
			return nil
		})
		var tx *sql.Tx
		if err == nil {
			tx, err = session.BeginTx(ctx, opts)
		}
		if err == nil {
			c.session = session
			return tx, nil
		}
		_ = session.Close() // the error of BEGIN says more
		if dead <= 0 || !errors.Is(err, driver.ErrBadConn) {
			return nil, err
		}
	}
}

// beginSQLite makes the transaction a writer from the start, whatever _txlock the DSN asks for: one
// that begins by reading can fail at its first write. A read-only one is kept from writing.
func (c *sqlConn) beginSQLite(ctx context.Context) error {
	if c.readOnly {
		_, err := c.on.ExecContext(ctx, "PRAGMA query_only = ON")
		return err
	}
	if _, err := c.on.ExecContext(ctx, "ROLLBACK"); err != nil {
		return err
	}
	return retryBusy(ctx, func() error {
		_, err := c.on.ExecContext(ctx, "BEGIN IMMEDIATE")
		return err
	})
}

// end gives back what the transaction held.
func (c *sqlConn) end() {
	if c.cancel != nil {
		c.cancel()
	}
	if c.session != nil {
		_ = c.session.Close() // puts the connection back, or finds it dead
	}
	if c.leave != nil {
		c.leave()
	}
}

func (c *sqlConn) Exec(ctx context.Context, query string, args ...any) (int64, error) {
	return exec(ctx, c.on, query, args)
}

func (c *sqlConn) Query(ctx context.Context, query string, args []any, row func(txn.Scanner) error) error {
	return queryRows(ctx, c.on, query, args, row)
}

// Watch implements txn.Conn: MySQL needs a savepoint that it can be asked about.
func (c *sqlConn) Watch(ctx context.Context) error {
	if c.dialect != txn.MySQL || c.guarded {
		return nil
	}
	return c.setGuard(ctx)
}

func (c *sqlConn) setGuard(ctx context.Context) error {
	_, err := c.on.ExecContext(ctx, "SAVEPOINT "+guard)
	c.guarded = err == nil
	return err
}

// Savepointed keeps the guard the newest savepoint, because releasing one releases all after it.
func (c *sqlConn) Savepointed(ctx context.Context) error {
	if !c.guarded {
		return nil
	}
	return c.setGuard(ctx)
}

// Inside implements txn.Conn. PostgreSQL ends no transaction by itself, lets no procedure end one, and refuses
// everything in a failed one, COMMIT too. So there only a COMMIT that went past us is in question.
func (c *sqlConn) Inside(ctx context.Context) error {
	var err error
	outside := false
	switch c.dialect {
	case txn.MySQL:
		outside, err = c.outsideMySQL(ctx)
	case txn.Postgres:
		if c.raw {
			// One after the other: an ORM may prepare what goes through its transaction.
			if _, err = c.on.ExecContext(ctx, "SAVEPOINT "+guard); err == nil {
				_, err = c.on.ExecContext(ctx, "RELEASE SAVEPOINT "+guard)
			}
			outside = dberr.SQLState(err) == "25P01"
		}
	case txn.SQLite:
		if _, begun := c.on.ExecContext(ctx, "BEGIN"); begun == nil {
			_, _ = c.on.ExecContext(ctx, "ROLLBACK")
			outside = true
		} else if errors.Is(begun, sql.ErrTxDone) {
			err = begun
		}
	}
	if outside || errors.Is(err, sql.ErrTxDone) {
		return txn.Because(ErrTxAborted, txn.ErrOutside)
	}
	return err
}

// outsideMySQL asks by releasing the guard. That would release savepoints as well which were set past
// us, so after Unwrap a variable is asked where there is one (MariaDB).
func (c *sqlConn) outsideMySQL(ctx context.Context) (bool, error) {
	if c.raw {
		var in bool
		scan := func(row txn.Scanner) error { return row.Scan(&in) }
		if err := c.Query(ctx, "SELECT @@in_transaction", nil, scan); dberr.MySQL(err) != unknownVariable {
			return err == nil && !in, err
		}
	}
	c.guarded = false
	_, err := c.on.ExecContext(ctx, "RELEASE SAVEPOINT "+guard)
	return dberr.MySQL(err) == noSavepoint, err
}
