package millrace_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/pgxtx"
)

const oneRow = "INSERT INTO rows_written VALUES (1)"

// BenchmarkOneInsert compares a transaction of one insert with and without InTx, on PostgreSQL. "bare
// again" shows how far two runs of the same differ.
func BenchmarkOneInsert(b *testing.B) {
	dsn := testenv.Postgres(b)
	std := openDB("pgx", dsn)
	b.Cleanup(func() { _ = std.Close() })
	native, err := pgxpool.New(b.Context(), dsn)
	require.NoError(b, err)
	b.Cleanup(native.Close)
	_, err = std.Exec("CREATE TABLE rows_written (n INT)")
	require.NoError(b, err)
	plain, witnessed := millrace.SQL(std), millrace.SQL(std, millrace.Config{ResolveTimeout: time.Second})
	pool, witnessedPool := pgxtx.Pool(native), pgxtx.Pool(native, millrace.Config{ResolveTimeout: time.Second})
	require.NoError(b, millrace.Migrate(b.Context(), plain, millrace.WitnessMigrations()))

	bareStd := func(ctx context.Context) error {
		tx, err := std.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		if _, err = tx.ExecContext(ctx, oneRow); err != nil {
			return err
		}
		return tx.Commit()
	}
	bareNative := func(ctx context.Context) error {
		tx, err := native.Begin(ctx)
		if err != nil {
			return err
		}
		if _, err = tx.Exec(ctx, oneRow); err != nil {
			return err
		}
		return tx.Commit(ctx)
	}
	inTx := func(db *millrace.SQLDB) func(context.Context) error {
		return func(ctx context.Context) error {
			return millrace.InTx(ctx, db, func(ctx context.Context, tx *millrace.Tx) error {
				_, err := tx.ExecContext(ctx, oneRow)
				return err
			})
		}
	}
	inPgx := func(db *pgxtx.DB) func(context.Context) error {
		return func(ctx context.Context) error {
			return millrace.InTx(ctx, db, func(ctx context.Context, tx pgx.Tx) error {
				_, err := tx.Exec(ctx, oneRow)
				return err
			})
		}
	}
	for _, c := range []struct {
		name string
		run  func(context.Context) error
	}{
		{"stdlib/bare", bareStd}, {"stdlib/InTx", inTx(plain)}, {"stdlib/bare again", bareStd}, {"stdlib/witness", inTx(witnessed)},
		{"pgx/bare", bareNative}, {"pgx/InTx", inPgx(pool)}, {"pgx/bare again", bareNative}, {"pgx/witness", inPgx(witnessedPool)},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := c.run(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkHooks shows what hooks add to a transaction: on SQLite in memory, whose own cost is small. The
// difference of two lines, divided by the difference of their hooks, is the cost of one.
func BenchmarkHooks(b *testing.B) {
	std := openDB("sqlite", ":memory:")
	b.Cleanup(func() { _ = std.Close() })
	std.SetMaxOpenConns(1)
	db := millrace.SQL(std)
	for _, hooks := range []int{0, 1, 10, 100} {
		b.Run(fmt.Sprint(hooks), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				err := millrace.InTx(b.Context(), db, func(ctx context.Context, _ *millrace.Tx) error {
					for range hooks {
						if err := millrace.AfterCommit(ctx, nothing); err != nil {
							return err
						}
					}
					return nil
				})
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
