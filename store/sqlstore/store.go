// Package sqlstore is a store.Store in PostgreSQL, MySQL or MariaDB, and SQLite: the default, since what
// is stored there is kept as what the database commits. Usually it is the service's own database.
//
//	db := millrace.SQL(sqlDB) // or pgxtx.Pool(pool)
//	err := millrace.Migrate(ctx, db, sqlstore.Migrations())
//	st, err := sqlstore.New(db)
package sqlstore

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"sync/atomic"
	"time"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/internal/backoff"
	"github.com/millrace-go/millrace/internal/dberr"
	"github.com/millrace-go/millrace/internal/migrate"
	"github.com/millrace-go/millrace/internal/txn"
	"github.com/millrace-go/millrace/store"
)

//go:embed migrations
var migrations embed.FS

// Migrations is the schema of the store, for millrace.Migrate.
func Migrations() millrace.Part {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		panic("sqlstore: embedded migrations: " + err.Error()) // cannot happen: the path is a constant
	}
	return millrace.Part{Name: "store", Files: files}
}

// ErrNoTable: the store's tables are missing or older than this package. It wraps store.ErrSetup.
var ErrNoTable = fmt.Errorf("sqlstore: %w: call millrace.Migrate(ctx, db, sqlstore.Migrations()), or apply the SQL files of store/sqlstore/migrations",
	store.ErrSetup)

// Store is a store.Store in a SQL database. It is safe for concurrent use. It takes no part in
// transactions of its caller: what it is told holds when the call returns.
type Store struct {
	pool txn.Pool
	said atomic.Pointer[statements]
}

var _ store.Store = (*Store)(nil)

// New returns a store in the database of db. It opens and starts nothing.
func New(db millrace.DB) (*Store, error) {
	if db == nil {
		return nil, errors.New("sqlstore: no database")
	}
	return &Store{pool: db.TxnPool()}, nil
}

// Check implements store.Delayed: ErrNoTable if the tables are not there, any other error is an outage.
func (s *Store) Check(ctx context.Context) error {
	part := Migrations()
	have, want, err := migrate.Versions(ctx, s.pool, part.Name, part.Files)
	if err != nil {
		return fmt.Errorf("sqlstore: check: %w", err)
	}
	if have < want {
		dialect, _ := s.pool.Dialect(ctx) // it is known by now
		return fmt.Errorf("%w/%s (version %d, want %d)", ErrNoTable, dialect, have, want)
	}
	return nil
}

// say are the statements in the words of the database.
func (s *Store) say(ctx context.Context) (*statements, error) {
	if said := s.said.Load(); said != nil {
		return said, nil
	}
	dialect, err := s.pool.Dialect(ctx)
	if err != nil {
		return nil, err
	}
	said := translate(dialect)
	s.said.Store(said)
	return said, nil
}

const tries = 8

var betweenTries = backoff.Policy{Base: 5 * time.Millisecond, Max: 200 * time.Millisecond}

// again runs fn until it meets no deadlock. Op names it in the error.
func (s *Store) again(ctx context.Context, op string, fn func(*statements) error) error {
	said, err := s.say(ctx)
	for try := 1; err == nil; try++ {
		if err = fn(said); err == nil {
			return nil
		}
		if try == tries || ctx.Err() != nil || !dberr.Retryable(err) {
			break
		}
		err = pause(ctx, betweenTries.Delay(try))
	}
	return fmt.Errorf("sqlstore: %s: %w", op, err)
}

// atomic runs fn in one transaction, again after a deadlock.
func (s *Store) atomic(ctx context.Context, op string, fn func(*statements, txn.Querier) error) error {
	return s.again(ctx, op, func(said *statements) error {
		options := txn.Options{Isolation: sql.LevelReadCommitted}
		if said.dialect == txn.SQLite {
			options.Isolation = sql.LevelDefault
		}
		return txn.Atomic(ctx, s.pool, options, func(q txn.Querier) error { return fn(said, q) })
	})
}

// changed runs one statement and reports whether it changed a row.
func (s *Store) changed(ctx context.Context, op string, text func(*statements) string, args ...any) (yes bool, err error) {
	err = s.again(ctx, op, func(said *statements) error {
		n, err := s.pool.Exec(ctx, text(said), args...)
		yes = n > 0
		return err
	})
	return yes, err
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
