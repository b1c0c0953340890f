package half

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/millrace-go/millrace/internal/dberr"
	"github.com/millrace-go/millrace/internal/txn"
)

// The barrier is a row (id, W) that the local transaction writes first, or (id, T) that whoever checks
// back writes in its place. The primary key lets one of the two stand: if it is the tombstone T, the
// local transaction can never commit any more.
//
// A tombstone proves something only as long as no witness has been purged, and keeps a transaction from
// committing only as long as it has not been purged itself. So a witness is refused after MaxAge, and a
// tombstone is not believed when the message is older than half of the Retention, which is at least
// twice MaxAge.

// witness writes the row into the open transaction, unless that comes too late: limit is in
// microseconds since 1970, compared with the time of the business's database.
func witness(ctx context.Context, tx *txn.Tx, id string, limit int64) error {
	n, err := exec(ctx, tx, tx.Dialect(), writeWitness[tx.Dialect()], id, limit)
	switch {
	case err != nil && duplicate(err):
		return fmt.Errorf("%w, or it has had its local transaction: %w", ErrRolledBack, err)
	case err != nil:
		return fmt.Errorf("half: witness: %w", err)
	case n == 0:
		return ErrTooLate
	}
	return nil
}

var writeWitness = map[txn.Dialect]string{
	txn.Postgres: `INSERT INTO millrace_barrier (id, kind, created_at) SELECT $1, 'W', {now}
		WHERE extract(epoch from {now}) * 1000000 < $2::bigint`,
	txn.MySQL: `INSERT INTO millrace_barrier (id, kind, created_at) SELECT $1, 'W', {now} FROM DUAL
		WHERE TIMESTAMPDIFF(MICROSECOND, '1970-01-01', {now}) < $2`,
	txn.SQLite: `INSERT INTO millrace_barrier (id, kind, created_at) SELECT $1, 'W', {now} WHERE {now} < $2`,
}

// duplicate reports whether a row with this key is there already.
func duplicate(err error) bool {
	const uniqueViolation, duplicateEntry, constraint = "23505", 1062, 19
	return dberr.SQLState(err) == uniqueViolation || dberr.MySQL(err) == duplicateEntry || dberr.SQLite(err)&0xff == constraint
}

// bury writes the tombstone, or reads what stands in its place. A local transaction that is still open
// holds the place locked: that is an error, as is everything else that does not tell.
func bury(ctx context.Context, p txn.Pool, id string) (verdict Verdict, err error) {
	dialect, err := p.Dialect(ctx)
	if err != nil {
		return Unknown, err
	}
	options := txn.Options{Isolation: sql.LevelReadCommitted}
	if dialect == txn.SQLite {
		options.Isolation = sql.LevelDefault
	}
	err = txn.Atomic(ctx, p, options, func(q txn.Querier) error {
		switch dialect {
		case txn.Postgres:
			_, err = q.Exec(ctx, `SET LOCAL lock_timeout = '1s'`)
		case txn.MySQL:
			err = query(ctx, q, dialect, `SELECT id FROM millrace_barrier WHERE id = $1 FOR UPDATE NOWAIT`, []any{id},
				func(txn.Scanner) error { return nil })
		}
		if err != nil {
			return err
		}
		n, err := exec(ctx, q, dialect, writeTombstone[dialect], id)
		if err != nil || n == 1 {
			verdict = WasRolledBack
			return err
		}
		kind := ""
		err = query(ctx, q, dialect, `SELECT kind FROM millrace_barrier WHERE id = $1`, []any{id}, func(row txn.Scanner) error {
			return row.Scan(&kind)
		})
		switch {
		case err != nil:
			return err
		case kind == "W":
			verdict = WasCommitted
		case kind == "T":
			verdict = WasRolledBack
		default:
			return errors.New("half: the witness has gone")
		}
		return nil
	})
	if err != nil {
		return Unknown, err
	}
	return verdict, nil
}

var writeTombstone = map[txn.Dialect]string{
	txn.Postgres: `INSERT INTO millrace_barrier (id, kind, created_at) VALUES ($1, 'T', {now}) ON CONFLICT (id) DO NOTHING`,
	txn.MySQL:    `INSERT IGNORE INTO millrace_barrier (id, kind, created_at) VALUES ($1, 'T', {now})`,
	txn.SQLite:   `INSERT INTO millrace_barrier (id, kind, created_at) VALUES ($1, 'T', {now}) ON CONFLICT (id) DO NOTHING`,
}

// purgeBatch is how many rows one statement deletes: it holds their locks for a moment only.
const purgeBatch = 1000

var purgeBarrier = map[txn.Dialect]string{
	txn.Postgres: `DELETE FROM millrace_barrier WHERE id IN (
		SELECT id FROM millrace_barrier WHERE created_at < {before $1} ORDER BY created_at LIMIT $2 FOR UPDATE SKIP LOCKED)`,
	txn.MySQL:  `DELETE FROM millrace_barrier WHERE created_at < {before $1} ORDER BY created_at LIMIT $2`,
	txn.SQLite: `DELETE FROM millrace_barrier WHERE id IN (SELECT id FROM millrace_barrier WHERE created_at < {before $1} ORDER BY created_at LIMIT $2)`,
}

var purgeHalf = map[txn.Dialect]string{
	txn.Postgres: `DELETE FROM millrace_half WHERE id IN (
		SELECT id FROM millrace_half WHERE decided_at < {before $1} ORDER BY decided_at LIMIT $2 FOR UPDATE SKIP LOCKED)`,
	txn.MySQL:  `DELETE FROM millrace_half WHERE decided_at < {before $1} ORDER BY decided_at LIMIT $2`,
	txn.SQLite: `DELETE FROM millrace_half WHERE id IN (SELECT id FROM millrace_half WHERE decided_at < {before $1} ORDER BY decided_at LIMIT $2)`,
}

// Purge forgets decided messages, witnesses and tombstones that are older than Config.Retention, in
// small statements, and reports how many. Run calls it now and then.
func (m *Messages) Purge(ctx context.Context) (int64, error) {
	total, err := m.purge(ctx, m.pool, purgeHalf)
	errs := []error{err}
	for _, db := range m.cfg.Witnesses {
		n, err := m.purge(ctx, db.TxnPool(), purgeBarrier)
		total += n
		errs = append(errs, err)
	}
	return total, errors.Join(errs...)
}

func (m *Messages) purge(ctx context.Context, p txn.Pool, text map[txn.Dialect]string) (total int64, err error) {
	dialect, err := p.Dialect(ctx)
	if err != nil {
		return 0, fmt.Errorf("half: purge: %w", err)
	}
	for {
		n, err := exec(ctx, p, dialect, text[dialect], micros(m.cfg.Retention), purgeBatch)
		total += n
		if err != nil {
			return total, fmt.Errorf("half: purge: %w", err)
		}
		if n < purgeBatch {
			return total, nil
		}
	}
}
