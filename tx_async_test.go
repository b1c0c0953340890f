package millrace_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/internal/testenv"
)

// closer is what Async hooks are waited for with.
type closer interface {
	Close(ctx context.Context) error
}

func asyncEnv(t *testing.T, driver string, cfg millrace.Config) (*env, closer) {
	e := newEnv(t, driver, cfg)
	return e, e.db.(closer)
}

// after commits a transaction with AfterCommit hooks.
func after(t *testing.T, e *env, fn func(context.Context) error, opts ...millrace.HookOption) {
	t.Helper()
	require.NoError(t, e.InTx(t.Context(), func(ctx context.Context, _ handle) error {
		return millrace.AfterCommit(ctx, fn, opts...)
	}))
}

func TestInTxDoesNotWaitForAsyncHooksAndCloseDoes(t *testing.T) {
	for _, driver := range []string{"pgx", "sqlite"} {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			e, db := asyncEnv(t, driver, millrace.Config{})
			release := make(chan struct{})
			var ran atomic.Int32
			for range 10 {
				after(t, e, func(ctx context.Context) error {
					<-release
					ran.Add(1)
					_, bounded := ctx.Deadline()
					if !bounded || ctx.Err() != nil || millrace.AfterCommit(ctx, nothing) == nil {
						return errors.New("the context is not a hook's")
					}
					return e.InTx(ctx, func(ctx context.Context, tx handle) error { return nil })
				}, millrace.Async())
			}
			require.Zero(t, ran.Load())

			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			err := db.Close(ctx)
			require.ErrorIs(t, err, context.Canceled)
			require.ErrorContains(t, err, "4 hooks are running, 6 wait")

			close(release)
			require.NoError(t, db.Close(t.Context()))
			require.EqualValues(t, 10, ran.Load())
			require.Empty(t, e.hookErrors())

			inline := false
			after(t, e, func(context.Context) error { inline = true; return nil }, millrace.Async())
			require.True(t, inline, "after Close nothing is lost")
			require.NoError(t, db.Close(t.Context()))
		})
	}
}

func TestAnAsyncHookWithoutRoomRunsInItsCallersGoroutine(t *testing.T) {
	t.Parallel()
	e, db := asyncEnv(t, "sqlite", millrace.Config{AsyncWorkers: 1, AsyncQueue: 1})
	var j journal
	release := make(chan struct{})
	blocked := func(name string) func(context.Context) error {
		return func(context.Context) error { <-release; j.add("%s", name); return nil }
	}
	after(t, e, blocked("first"), millrace.Async())
	after(t, e, blocked("second"), millrace.Async())
	after(t, e, j.hook("third"), millrace.Async())
	require.Equal(t, "third", j.String())
	close(release)
	require.NoError(t, db.Close(t.Context()))
	require.Equal(t, "third, first, second", j.String())
}

func TestAFailingAsyncHookIsReportedAndTheNextRuns(t *testing.T) {
	t.Parallel()
	e, db := asyncEnv(t, "sqlite", millrace.Config{AsyncWorkers: 1})
	var j journal
	for _, fn := range []func(context.Context) error{
		func(context.Context) error { return errBusiness },
		func(context.Context) error { panic("boom") },
		func(context.Context) error { runtime.Goexit(); return nil },
		j.hook("last"),
	} {
		after(t, e, fn, millrace.Async(), millrace.Name("mail"))
	}
	require.NoError(t, db.Close(t.Context()))
	require.Equal(t, "last", j.String())
	failed := e.hookErrors()
	require.Len(t, failed, 3)
	require.Equal(t, errBusiness, failed[0].Err)
	var p *millrace.PanicError
	require.ErrorAs(t, failed[1].Err, &p)
	require.ErrorIs(t, failed[2].Err, millrace.ErrHookExited)
	for _, f := range failed {
		require.Equal(t, "mail", f.Name)
		require.Equal(t, "after commit", f.Phase)
	}
}

func TestAnAsyncHookThatOverrunsIsReportedAndTheNextRuns(t *testing.T) {
	t.Parallel()
	e, db := asyncEnv(t, "sqlite", millrace.Config{AsyncWorkers: 1, HookTimeout: 20 * time.Millisecond})
	var j journal
	after(t, e, func(context.Context) error {
		for len(e.hookErrors()) == 0 {
			runtime.Gosched()
		}
		return nil
	}, millrace.Async(), millrace.Name("mail"))
	after(t, e, j.hook("last"), millrace.Async(), millrace.Name("last")) // which on a busy machine overruns as well
	require.NoError(t, db.Close(t.Context()))
	require.Equal(t, "last", j.String())
	failed := e.hookErrors()[0]
	require.ErrorIs(t, failed.Err, millrace.ErrHookOverrun)
	require.Equal(t, "mail", failed.Name)
	require.Equal(t, "after commit", failed.Phase)
}

func TestAsyncHooksRunInEachPhaseWithTheOutcome(t *testing.T) {
	t.Parallel()
	e, db := asyncEnv(t, "sqlite", millrace.Config{AsyncWorkers: 1})
	var j journal
	require.ErrorIs(t, e.InTx(t.Context(), func(ctx context.Context, _ handle) error {
		require.ErrorIs(t, millrace.BeforeCommit(ctx, nothing, millrace.Async()), millrace.ErrUnsupported)
		require.NoError(t, millrace.AfterCommit(ctx, j.hook("committed"), millrace.Async()))
		require.NoError(t, millrace.AfterCompletion(ctx, func(_ context.Context, o millrace.Outcome) error {
			j.add("done:%v", o)
			return nil
		}, millrace.Async()))
		require.NoError(t, millrace.AfterRollback(ctx, j.hook("rolledback"), millrace.Async()))
		return errBusiness
	}), errBusiness)
	require.NoError(t, db.Close(t.Context()))
	require.Equal(t, "rolledback, done:rolled back", j.String())
}

func TestNoAsyncHookIsLostWhileTheDBCloses(t *testing.T) {
	t.Parallel()
	e, db := asyncEnv(t, "sqlite", millrace.Config{AsyncWorkers: 2, AsyncQueue: 3})
	var ran atomic.Int32
	finished := make(chan error, 4)
	for i := range cap(finished) {
		go func() {
			var errs []error
			for k := range 25 {
				errs = append(errs, e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
					return errors.Join(
						note(ctx, tx, fmt.Sprint(i, "-", k)),
						millrace.AfterCommit(ctx, func(context.Context) error { ran.Add(1); return nil }, millrace.Async()))
				}))
			}
			finished <- errors.Join(errs...)
		}()
	}
	testenv.Eventually(t, 30*time.Second, "some ran", func() bool { return ran.Load() > 20 })
	require.NoError(t, db.Close(t.Context()))
	for range cap(finished) {
		require.NoError(t, <-finished)
	}
	require.EqualValues(t, 100, ran.Load())
}
