package txn

import (
	"context"
	"errors"
	"log/slog"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

type valueKey struct{}

// played runs hooks in a bubble of its own clock and returns what was reported.
func played(t *testing.T, s Settings, hooks ...func(ctx context.Context)) (reported []error) {
	synctest.Test(t, func(*testing.T) {
		var mu sync.Mutex
		s.Logger = slog.New(slog.DiscardHandler)
		s.OnHookError = func(e HookError) {
			mu.Lock()
			defer mu.Unlock()
			reported = append(reported, e.Err)
		}
		tx := &Tx{settings: &s}
		for _, fn := range hooks {
			tx.hooks = append(tx.hooks, hook{Hook: Hook{Phase: AfterCommit, Name: "h", Fn: func(ctx context.Context, _ Outcome) error { fn(ctx); return nil }}})
		}
		outer, cancel := context.WithCancel(context.WithValue(context.Background(), valueKey{}, "value"))
		cancel() // of no consequence
		tx.runHooks(with(outer, "a database", &Tx{}), Committed)
	})
	return reported
}

var usual = Settings{HookTimeout: time.Second, HooksTimeout: time.Minute}

func TestTheContextOfAHookEndsAtItsDeadlineHoweverItIsAsked(t *testing.T) {
	t.Parallel()
	for name, wait := range map[string]func(ctx context.Context) error{
		"Done":  func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
		"Err":   func(ctx context.Context) error { time.Sleep(time.Second); return ctx.Err() },
		"Cause": func(ctx context.Context) error { <-ctx.Done(); return context.Cause(ctx) },
		"Err, then Done": func(ctx context.Context) error {
			time.Sleep(2 * time.Second)
			err := ctx.Err()
			<-ctx.Done()
			return err
		},
		"a child": func(ctx context.Context) error {
			child, cancel := context.WithCancel(ctx)
			defer cancel()
			<-child.Done()
			return child.Err()
		},
		"a child with a value and a later deadline": func(ctx context.Context) error {
			child, cancel := context.WithTimeout(context.WithValue(ctx, valueKey{}, "other"), time.Hour)
			defer cancel()
			<-child.Done()
			return child.Err()
		},
		"AfterFunc": func(ctx context.Context) error {
			called := make(chan struct{})
			context.AfterFunc(ctx, func() { close(called) })
			<-called
			return ctx.Err()
		},
	} {
		t.Run(name, func(t *testing.T) {
			reported := played(t, usual, func(ctx context.Context) {
				start := time.Now()
				deadline, ok := ctx.Deadline()
				require.True(t, ok)
				require.Equal(t, time.Second, deadline.Sub(start))
				require.NoError(t, ctx.Err())
				require.ErrorIs(t, wait(ctx), context.DeadlineExceeded)
				time.Sleep(time.Millisecond) // it has overrun, not merely come to its end
				require.Greater(t, time.Since(start), time.Second)
				require.Equal(t, "value", ctx.Value(valueKey{}))
			})
			require.Len(t, reported, 1)
			require.ErrorIs(t, reported[0], ErrHookOverrun)
		})
	}
}

func TestTheContextOfAHookEndsWithIt(t *testing.T) {
	t.Parallel()
	var asked, silent context.Context
	played(t, usual, func(ctx context.Context) {
		asked = ctx
		require.NotNil(t, ctx.Done())
	}, func(ctx context.Context) { silent = ctx }, func(context.Context) {
		for _, ctx := range []context.Context{asked, silent} {
			require.Equal(t, context.Canceled, ctx.Err())
			<-ctx.Done()
			require.Equal(t, context.Canceled, ctx.Err())
		}
	})
}

func TestContextsMadeFromAHooksNeedNoGoroutine(t *testing.T) {
	t.Parallel()
	played(t, usual, func(ctx context.Context) {
		before := runtime.NumGoroutine()
		for range 100 {
			_, cancel := context.WithCancel(ctx)
			defer cancel()
		}
		if n := runtime.NumGoroutine() - before; n >= 100 { // other tests have goroutines, too
			t.Errorf("%d goroutines for 100 contexts", n)
		}
	})
}

func TestAHooksContextHasNoTransactionAndKnowsTheOutcome(t *testing.T) {
	t.Parallel()
	reported := played(t, usual, func(ctx context.Context) {
		for _, ctx := range []context.Context{ctx, context.WithValue(ctx, valueKey{}, 1), context.WithoutCancel(ctx)} {
			_, err := Current(ctx, nil)
			require.ErrorIs(t, err, ErrNoTransaction)
			outcome, ok := Ended(ctx)
			require.True(t, ok)
			require.Equal(t, Committed, outcome)
			require.Equal(t, 1, depth(ctx))
		}
	})
	require.Empty(t, reported)
}

func TestAllHooksTogetherHaveADeadline(t *testing.T) {
	t.Parallel()
	started := time.Time{}
	reported := played(t, Settings{HookTimeout: 3 * time.Second, HooksTimeout: 5 * time.Second},
		func(ctx context.Context) {
			started = time.Now()
			time.Sleep(2 * time.Second) // in time
		},
		func(ctx context.Context) {
			<-ctx.Done()
			require.Equal(t, 5*time.Second, time.Since(started), "3 s of its own, which are the last of all")
			time.Sleep(time.Second)
		},
		func(ctx context.Context) {
			require.Equal(t, context.DeadlineExceeded, ctx.Err(), "it runs nevertheless")
			time.Sleep(time.Second)
		})
	require.Len(t, reported, 2)
	for _, err := range reported {
		require.ErrorIs(t, err, ErrHookOverrun)
	}
}

func TestAnOverrunIsReportedOnceForEachHookThatOverran(t *testing.T) {
	t.Parallel()
	sleep := func(d time.Duration) func(context.Context) { return func(context.Context) { time.Sleep(d) } }
	reported := played(t, usual,
		sleep(0), sleep(600*time.Millisecond), sleep(600*time.Millisecond), // together more than one may take
		sleep(3*time.Second), sleep(900*time.Millisecond), sleep(1100*time.Millisecond), sleep(0))
	require.Len(t, reported, 2)
	require.ErrorContains(t, errors.Join(reported...), "after 1s, waiting for it")
}
