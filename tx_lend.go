package millrace

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"

	"github.com/millrace-go/millrace/internal/txn"
)

// Lend implements txn.Lender.
func (p *sqlPool) Lend(ctx context.Context, first string, fn func(txn.Querier) (clean bool, err error)) error {
	for dead := p.db.Stats().Idle; ; dead-- { // as *sql.DB by itself, it passes over connections that died in the pool
		conn, err := p.db.Conn(ctx)
		if err != nil {
			return fmt.Errorf("millrace: connection: %w", err)
		}
		l := lent{conn}
		if _, err = l.Exec(ctx, first); err == nil {
			return l.use(fn)
		}
		l.giveBack(false)
		if dead <= 0 || !errors.Is(err, driver.ErrBadConn) {
			return err
		}
	}
}

// lent is a connection that is somebody's for a while.
type lent struct{ conn *sql.Conn }

func (l lent) use(fn func(txn.Querier) (clean bool, err error)) (err error) {
	clean := false
	defer func() { l.giveBack(clean) }() // also when fn panics
	clean, err = fn(l)
	return err
}

// giveBack puts a clean connection back into the pool, and closes another one.
func (l lent) giveBack(clean bool) {
	if !clean {
		_ = l.conn.Raw(func(any) error { return driver.ErrBadConn })
	}
	_ = l.conn.Close()
}

// Exec implements txn.Querier.
func (l lent) Exec(ctx context.Context, query string, args ...any) (int64, error) {
	return exec(ctx, l.conn, query, args)
}

// Query implements txn.Querier.
func (l lent) Query(ctx context.Context, query string, args []any, row func(txn.Scanner) error) error {
	return queryRows(ctx, l.conn, query, args, row)
}
