package txn

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Atomic runs fn in one short transaction of millrace's own: no hooks, no buffers, not found by From.
// It commits if fn returns nil, and rolls back otherwise. An error leaves nothing done, unless it is
// an *UnknownError. On SQLite the transaction is a writer from the start.
func Atomic(ctx context.Context, p Pool, o Options, fn func(Querier) error) error {
	b, ok := p.(Beginner)
	if !ok {
		return fmt.Errorf("%w: this database handle begins no transactions", ErrUnsupported)
	}
	conn, err := b.Begin(ctx, o)
	if err != nil {
		return err
	}
	err = errLeft // a panic goes on after the rollback
	defer func() {
		if err != nil {
			rollbackAtomic(ctx, conn)
		}
	}()
	if err = fn(conn); err != nil {
		return err
	}
	limit := o.CommitTimeout
	if limit == 0 {
		limit = 10 * time.Second
	}
	outcome, cause := conn.Commit(ctx, nil, limit)
	switch {
	case outcome == Committed:
		return nil
	case outcome == Unknown:
		return &UnknownError{Cause: cause}
	case cause == nil:
		return errors.New("millrace: commit: rolled back")
	}
	return cause
}

func rollbackAtomic(ctx context.Context, conn Conn) {
	_ = conn.Rollback(ctx) // a connection that cannot say ROLLBACK is closed
}
