package millrace_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/internal/testenv"
)

func TestRequiresNewOnOneConnectionIsRefused(t *testing.T) {
	t.Parallel()
	db := openDB("postgres", testenv.Postgres(t))
	t.Cleanup(func() { _ = db.Close() })
	db.SetMaxOpenConns(1)
	e := sqlEnv(db)
	err := e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
		return e.InTx(ctx, func(context.Context, handle) error { return nil }, millrace.RequiresNew())
	})
	require.ErrorIs(t, err, millrace.ErrUnsupported)
}

// Hooks run after the connection went back, so that as many transactions as there are connections can
// all open another one in their hooks.
func TestHooksNeverWaitForTheirOwnConnection(t *testing.T) {
	t.Parallel()
	db := openDB("postgres", testenv.Postgres(t))
	t.Cleanup(func() { _ = db.Close() })
	const n = 4
	db.SetMaxOpenConns(n)
	_, err := db.Exec(schema)
	require.NoError(t, err)
	e := sqlEnv(db)
	var wg sync.WaitGroup
	for range 4 * n {
		wg.Go(func() {
			for range 10 {
				err := e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
					return millrace.AfterCommit(ctx, func(ctx context.Context) error {
						return e.InTx(ctx, func(ctx context.Context, tx handle) error { return tx.Exec(ctx, "SELECT 1") })
					})
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	require.Empty(t, e.hookErrors())
}

// With the pool exhausted by outer transactions, RequiresNew waits no longer than its context.
func TestAnExhaustedPoolIsAnErrorNotADeadlock(t *testing.T) {
	t.Parallel()
	db := openDB("postgres", testenv.Postgres(t))
	t.Cleanup(func() { _ = db.Close() })
	db.SetMaxOpenConns(3)
	e := sqlEnv(db)
	var all, wg sync.WaitGroup
	all.Add(3)
	for range 3 {
		wg.Go(func() {
			err := e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
				all.Done()
				all.Wait()
				ctx, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
				defer cancel()
				return e.InTx(ctx, func(context.Context, handle) error { return nil }, millrace.RequiresNew())
			})
			if err == nil || db.Stats().InUse > 3 {
				t.Error("three connections are not six")
			}
		})
	}
	wg.Wait()
	require.Zero(t, db.Stats().InUse)
}

func BenchmarkInTx(b *testing.B) {
	db := openDB("pgx", testenv.Postgres(b))
	b.Cleanup(func() { _ = db.Close() })
	mdb := millrace.SQL(db)
	ctx := context.Background()
	b.Run("bare", func(b *testing.B) {
		b.ReportAllocs()
		for range b.N {
			tx, err := db.BeginTx(ctx, nil)
			if err == nil {
				_, err = tx.ExecContext(ctx, "SELECT 1")
			}
			if err == nil {
				err = tx.Commit()
			}
			if err != nil {
				b.Fatal(err)
			}
		}
	})
	for _, hooks := range []int{0, 1, 100} {
		b.Run(map[int]string{0: "InTx", 1: "InTx, 1 hook", 100: "InTx, 100 hooks"}[hooks], func(b *testing.B) {
			b.ReportAllocs()
			for range b.N {
				err := millrace.InTx(ctx, mdb, func(ctx context.Context, tx *millrace.Tx) error {
					for range hooks {
						if err := millrace.AfterCommit(ctx, nothing); err != nil {
							return err
						}
					}
					_, err := tx.ExecContext(ctx, "SELECT 1")
					return err
				})
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
