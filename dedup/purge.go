package dedup

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/millrace-go/millrace/internal/txn"
)

// purgeBatch is how many rows one statement deletes: it holds their locks for a moment only.
const purgeBatch = 1000

// Run forgets, every PurgeEvery, what is older than Keep, until ctx ends; then it returns nil. A
// missing table ends it with an error; a database that is away is logged, and waited for. One replica
// that runs it is enough; more do no harm.
func (b *SQLInbox) Run(ctx context.Context) error {
	tick := time.NewTicker(b.cfg.PurgeEvery)
	defer tick.Stop()
	failing := false
	for {
		_, err := b.Purge(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && errors.Is(b.Check(ctx), ErrNoTable):
			return ErrNoTable
		case err != nil && !failing:
			b.cfg.Logger.WarnContext(ctx, "purge the inbox", "error", err)
		}
		failing = err != nil
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Purge forgets the messages that were handled longer ago than Keep, by the database's clock, and
// reports how many. It works in small statements, so that it may be interrupted.
func (b *SQLInbox) Purge(ctx context.Context) (forgotten int64, err error) {
	dialect, err := b.pool.Dialect(ctx)
	if err != nil {
		return 0, fmt.Errorf("dedup: purge the inbox: %w", err)
	}
	for {
		n, err := b.pool.Exec(ctx, deleteOld[dialect], int64(b.cfg.Keep/time.Second), purgeBatch)
		forgotten += n
		if err != nil {
			return forgotten, fmt.Errorf("dedup: purge the inbox: %w", err)
		}
		if n < purgeBatch {
			return forgotten, nil
		}
	}
}

var deleteOld = map[txn.Dialect]string{
	txn.Postgres: `DELETE FROM millrace_inbox WHERE (consumer, message_id) IN (
		SELECT consumer, message_id FROM millrace_inbox WHERE processed_at < now() - $1::bigint * interval '1 second'
		ORDER BY processed_at LIMIT $2 FOR UPDATE SKIP LOCKED)`,
	txn.MySQL: `DELETE FROM millrace_inbox WHERE processed_at < UTC_TIMESTAMP(6) - INTERVAL ? SECOND
		ORDER BY processed_at LIMIT ?`,
	txn.SQLite: `DELETE FROM millrace_inbox WHERE (consumer, message_id) IN (
		SELECT consumer, message_id FROM millrace_inbox WHERE processed_at < unixepoch() - ? ORDER BY processed_at LIMIT ?)`,
}
