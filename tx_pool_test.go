package millrace_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/pgxtx"
)

func TestRequiresNewOnOneConnectionIsRefused(t *testing.T) {
	for _, driver := range drivers[:4] {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			e := newEnv(t, driver, millrace.Config{})
			small(t, e, 1, millrace.Config{})
			require.ErrorIs(t, e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
				return e.InTx(ctx, func(context.Context, handle) error { return nil }, millrace.RequiresNew())
			}), millrace.ErrUnsupported)
			require.NoError(t, e.InTx(t.Context(), func(context.Context, handle) error { return nil }, millrace.RequiresNew()), "alone it needs one")
		})
	}
}

// Hooks run after the connection went back, so that as many transactions as there are connections can
// all open another one in their hooks.
func TestHooksNeverWaitForTheirOwnConnection(t *testing.T) {
	const n = 4
	for _, driver := range drivers[:4] {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			e := newEnv(t, driver, millrace.Config{})
			small(t, e, n, millrace.Config{})
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
		})
	}
}

// With the pool exhausted by outer transactions, RequiresNew is an error after a while, though no context ends. The
// outer transactions can go on, and nothing of the inner ones has happened.
func TestAnExhaustedPoolIsAnErrorNotADeadlock(t *testing.T) {
	const n = 3
	for _, driver := range drivers[:4] {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			e := newEnv(t, driver, millrace.Config{})
			small(t, e, n, millrace.Config{RequiresNewTimeout: 200 * time.Millisecond})
			var j journal
			var holding, refused, wg sync.WaitGroup
			holding.Add(n)
			refused.Add(n)
			for i := range n {
				wg.Go(func() {
					err := e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
						holding.Done()
						holding.Wait()
						err := e.InTx(ctx, func(context.Context, handle) error { j.add("ran"); return nil }, millrace.RequiresNew())
						if !errors.Is(err, millrace.ErrPoolExhausted) {
							t.Errorf("three connections are not six: %v", err)
						}
						refused.Done()
						refused.Wait() // or the first to end would help the others
						return errors.Join(note(ctx, tx, fmt.Sprint("outer", i)), millrace.AfterCommit(ctx, j.hook("committed")))
					})
					if err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			require.Equal(t, "outer0 outer1 outer2", e.notes(t))
			require.Equal(t, "committed, committed, committed", j.String())
			testenv.Eventually(t, 30*time.Second, "connections given back", func() bool { return e.inUse() == 0 })
		})
	}
}

// small gives e a pool of n connections.
func small(t *testing.T, e *env, n int, cfg millrace.Config) {
	cfg = e.reported(cfg)
	if e.driver == "pgx" {
		c, err := pgxpool.ParseConfig(e.dsn)
		require.NoError(t, err)
		c.MaxConns = int32(n)
		pool, err := pgxpool.NewWithConfig(t.Context(), c)
		require.NoError(t, err)
		t.Cleanup(pool.Close)
		e.usePgx(pgxtx.Pool(pool, cfg), pool)
		return
	}
	db := open(t, driverNames[e.driver], e.dsn)
	db.SetMaxOpenConns(n)
	e.use(db, cfg)
}
