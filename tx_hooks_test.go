package millrace_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace"
)

func nothing(context.Context) error { return nil }

func TestHooks(t *testing.T) {
	conform(t, []scenario{
		{"without a transaction a hook is refused, not dropped", nil, func(t *testing.T, e *env) {
			for _, register := range []func(context.Context, func(context.Context) error, ...millrace.HookOption) error{
				millrace.BeforeCommit, millrace.AfterCommit, millrace.AfterRollback,
			} {
				require.ErrorIs(t, register(t.Context(), nothing), millrace.ErrNoTransaction)
				require.ErrorIs(t, register(t.Context(), nothing, millrace.For(e.db)), millrace.ErrNoTransaction)
			}
			ran := false
			require.ErrorIs(t, millrace.AfterCommitOrNow(t.Context(), func(context.Context) error { ran = true; return errBusiness }), errBusiness)
			require.True(t, ran)
		}},
		{"AfterCommitOrNow waits for the commit", nil, func(t *testing.T, e *env) {
			ran := false
			require.NoError(t, e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
				require.NoError(t, millrace.AfterCommitOrNow(ctx, func(context.Context) error { ran = true; return nil }))
				require.False(t, ran)
				return nil
			}))
			require.True(t, ran)
		}},
		{"after the end a hook is refused", nil, func(t *testing.T, e *env) {
			var stale context.Context
			require.NoError(t, e.InTx(t.Context(), func(ctx context.Context, tx handle) error { stale = ctx; return nil }))
			require.ErrorIs(t, millrace.AfterCommit(stale, nothing), millrace.ErrTxCompleted)
			require.ErrorIs(t, e.InTx(stale, func(context.Context, handle) error { return nil }), millrace.ErrTxCompleted)
			require.ErrorIs(t, publish(stale, e.db, "late"), millrace.ErrTxCompleted)
			require.ErrorIs(t, stale.Err(), context.Canceled, "what fn started is told to end")
		}},
		{"BeforeCommit hooks may register hooks of every kind", nil, func(t *testing.T, e *env) {
			var j journal
			require.NoError(t, e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
				return millrace.BeforeCommit(ctx, func(ctx context.Context) error {
					j.add("first")
					require.NoError(t, publish(ctx, e.db, "message"))
					return j.all(ctx, "")
				})
			}))
			require.Equal(t, "first, before, committed, done:committed", j.String())
			require.Equal(t, "message", e.notes(t))
		}},
		{"BeforeCommit hooks that breed without end roll back", nil, func(t *testing.T, e *env) {
			var breed func(ctx context.Context) error
			breed = func(ctx context.Context) error { return millrace.BeforeCommit(ctx, breed) }
			err := e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
				require.NoError(t, note(ctx, tx, "a"))
				return breed(ctx)
			})
			require.ErrorContains(t, err, "16 rounds")
			require.Empty(t, e.notes(t))
		}},
		{"a failing BeforeCommit hook rolls back", nil, func(t *testing.T, e *env) {
			var j journal
			err := e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
				require.NoError(t, note(ctx, tx, "a"))
				require.NoError(t, millrace.BeforeCommit(ctx, func(context.Context) error { return errBusiness }))
				return j.all(ctx, "")
			})
			require.Equal(t, errBusiness, err)
			require.Empty(t, e.notes(t))
			require.Equal(t, "rolledback, done:rolled back", j.String())
		}},
		{"a BeforeCommit hook that ignores a failed part rolls back", nil, func(t *testing.T, e *env) {
			err := e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
				return millrace.BeforeCommit(ctx, func(ctx context.Context) error {
					_ = e.InTx(ctx, func(context.Context, handle) error { return errBusiness })
					return nil
				})
			})
			require.ErrorIs(t, err, millrace.ErrUnexpectedRollback)
		}},
		{"a panic in a BeforeCommit hook rolls back and goes on", nil, func(t *testing.T, e *env) {
			var j journal
			require.PanicsWithValue(t, "boom", func() {
				_ = e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
					require.NoError(t, note(ctx, tx, "a"))
					require.NoError(t, millrace.BeforeCommit(ctx, func(context.Context) error { panic("boom") }))
					return j.all(ctx, "")
				})
			})
			require.Empty(t, e.notes(t))
			require.Equal(t, "rolledback, done:rolled back", j.String())
		}},
		{"a failing hook is reported, the next runs, the result stands", nil, func(t *testing.T, e *env) {
			var j journal
			register := func(ctx context.Context) error {
				return errors.Join(
					millrace.AfterCommit(ctx, func(context.Context) error { return errBusiness }, millrace.Name("mail")),
					millrace.AfterCommit(ctx, func(context.Context) error { panic(errBusiness) }),
					millrace.AfterRollback(ctx, func(context.Context) error { panic("boom") }, millrace.Name("undo")),
					millrace.AfterCompletion(ctx, func(context.Context, millrace.Outcome) error { return errBusiness }),
					j.all(ctx, ""))
			}
			require.NoError(t, e.InTx(t.Context(), func(ctx context.Context, tx handle) error { return register(ctx) }))
			require.Equal(t, "before, committed, done:committed", j.String())
			failed := e.hookErrors()
			require.Len(t, failed, 3)
			require.Equal(t, "mail", failed[0].Name)
			require.Equal(t, "after commit", failed[0].Phase)
			require.Equal(t, errBusiness, failed[0].Err)
			require.Contains(t, failed[1].Name, "TestHooks")
			require.ErrorIs(t, failed[1].Err, errBusiness)
			var p *millrace.PanicError
			require.ErrorAs(t, failed[1].Err, &p)
			require.Contains(t, string(failed[1].Stack), "tx_hooks_test.go")
			require.Equal(t, "after completion", failed[2].Phase)

			err := e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
				require.NoError(t, register(ctx))
				return errBusiness
			})
			require.Equal(t, errBusiness, err)
			require.Equal(t, "after rollback", e.hookErrors()[3].Phase)
		}},
		{"a hook that ends its goroutine does not end the others", nil, func(t *testing.T, e *env) {
			var j journal
			done := make(chan struct{})
			go func() {
				defer close(done)
				_ = e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
					return errors.Join(
						note(ctx, tx, "a"),
						millrace.AfterCommit(ctx, func(context.Context) error { runtime.Goexit(); return nil }),
						j.all(ctx, ""))
				})
				j.add("not reached")
			}()
			<-done
			require.Equal(t, "before, committed, done:committed", j.String())
			require.ErrorIs(t, e.hookErrors()[0].Err, millrace.ErrHookExited)
			require.Equal(t, "a", e.notes(t))
		}},
		{"a hook's context has the values, a deadline, no cancel and no transaction", nil, func(t *testing.T, e *env) {
			type key struct{}
			ctx, cancel := context.WithCancel(context.WithValue(t.Context(), key{}, "value"))
			defer cancel()
			checked := false
			require.NoError(t, e.InTx(ctx, func(ctx context.Context, tx handle) error {
				return millrace.AfterCommit(ctx, func(ctx context.Context) error {
					cancel()
					require.NoError(t, ctx.Err())
					require.Equal(t, "value", ctx.Value(key{}))
					_, bounded := ctx.Deadline()
					require.True(t, bounded)
					require.ErrorIs(t, millrace.AfterCommit(ctx, nothing), millrace.ErrNoTransaction)
					require.ErrorIs(t, publish(ctx, e.db, "m"), errNotBuffered)
					checked = true
					return nil
				})
			}))
			require.True(t, checked)
			require.Empty(t, e.hookErrors())
		}},
		{"a hook may open its own transaction, to a bounded depth", nil, func(t *testing.T, e *env) {
			deepest := 0
			var again func(depth int) func(ctx context.Context) error
			again = func(depth int) func(ctx context.Context) error {
				return func(ctx context.Context) error {
					err := e.InTx(ctx, func(ctx context.Context, tx handle) error {
						deepest = depth
						require.NoError(t, note(ctx, tx, fmt.Sprint(depth)))
						return millrace.AfterCommit(ctx, again(depth+1))
					})
					if depth == 9 {
						require.ErrorIs(t, err, millrace.ErrUnsupported)
						return nil
					}
					return err
				}
			}
			require.NoError(t, again(0)(t.Context()))
			require.Equal(t, 8, deepest)
			require.Equal(t, "0 1 2 3 4 5 6 7 8", e.notes(t))
		}},
		{"hooks run in order of Order, then of registration", nil, func(t *testing.T, e *env) {
			var j journal
			require.NoError(t, e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
				return errors.Join(
					millrace.AfterCommit(ctx, j.hook("c"), millrace.Order(1)),
					millrace.AfterCommit(ctx, j.hook("b1")),
					millrace.AfterCommit(ctx, j.hook("b2")),
					millrace.AfterCommit(ctx, j.hook("a"), millrace.Order(-1)),
				)
			}))
			require.Equal(t, "a, b1, b2, c", j.String())
		}},
		{"with transactions of two databases a hook must name one", nil, func(t *testing.T, e *env) {
			other := newEnv(t, "sqlite", millrace.Config{})
			var j journal
			err := e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
				err := other.InTx(ctx, func(ctx context.Context, tx handle) error {
					require.ErrorIs(t, millrace.AfterCommit(ctx, nothing), millrace.ErrAmbiguousTransaction)
					require.NoError(t, millrace.AfterRollback(ctx, j.hook("outer"), millrace.For(e.db)))
					return millrace.AfterCommit(ctx, j.hook("other"), millrace.For(other.db))
				})
				require.NoError(t, err)
				return errBusiness
			})
			require.ErrorIs(t, err, errBusiness)
			require.Equal(t, "other, outer", j.String())
		}},
		{"hooks may be registered by several goroutines", nil, func(t *testing.T, e *env) {
			ran := make(chan struct{}, 100)
			require.NoError(t, e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
				errs := make(chan error)
				for range 100 {
					go func() {
						errs <- millrace.AfterCommit(ctx, func(context.Context) error { ran <- struct{}{}; return nil })
					}()
				}
				for range 100 {
					require.NoError(t, <-errs)
				}
				return nil
			}))
			require.Len(t, ran, 100)
		}},
		{"the hooks of a rolled back raw savepoint are discarded", nil, func(t *testing.T, e *env) {
			var j journal
			require.NoError(t, e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
				require.NoError(t, publish(ctx, e.db, "m1"))
				require.NoError(t, tx.Exec(ctx, "SAVEPOINT mine"))
				require.NoError(t, note(ctx, tx, "gone"))
				require.NoError(t, publish(ctx, e.db, "m2"))
				require.NoError(t, j.all(ctx, "inner "))
				require.NoError(t, tx.Exec(ctx, "ROLLBACK TO SAVEPOINT mine"))
				require.NoError(t, publish(ctx, e.db, "m3"))
				require.NoError(t, tx.Exec(ctx, "RELEASE SAVEPOINT mine"))
				require.NoError(t, publish(ctx, e.db, "m4"))
				return j.all(ctx, "outer ")
			}))
			require.Equal(t, "m1 m3 m4", e.notes(t))
			require.Equal(t, "outer before, inner rolledback, outer committed, inner done:rolled back, outer done:committed", j.String())
		}},
	})
}

func TestAHookThatOverrunsIsReportedAndWaitedFor(t *testing.T) {
	t.Parallel()
	e := newEnv(t, "sqlite", millrace.Config{HookTimeout: 100 * time.Millisecond})
	var j journal
	require.NoError(t, e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
		return errors.Join(
			millrace.AfterCommit(ctx, func(ctx context.Context) error {
				<-ctx.Done()
				for len(e.hookErrors()) == 0 {
					runtime.Gosched()
				}
				j.add("overrun: %v", ctx.Err())
				return nil
			}, millrace.Name("slow")),
			j.all(ctx, "")) // on a busy machine these may overrun as well
	}))
	require.Equal(t, "before, overrun: context deadline exceeded, committed, done:committed", j.String())
	require.ErrorIs(t, e.hookErrors()[0].Err, millrace.ErrHookOverrun)
	require.Equal(t, "slow", e.hookErrors()[0].Name)
}

func TestTheTotalDeadlineBoundsAllHooksTogether(t *testing.T) {
	t.Parallel()
	e := newEnv(t, "sqlite", millrace.Config{HookTimeout: time.Hour, HooksTimeout: 5 * time.Minute})
	ran := 0
	require.NoError(t, e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
		var ends time.Time
		hook := func(ctx context.Context) error {
			d, bounded := ctx.Deadline()
			require.True(t, bounded)
			require.LessOrEqual(t, time.Until(d), 5*time.Minute)
			if ran++; ran > 1 {
				require.Equal(t, ends, d, "it is that of all of them")
			}
			ends = d
			return nil
		}
		return errors.Join(millrace.AfterCommit(ctx, hook), millrace.AfterCommit(ctx, hook))
	}))
	require.Equal(t, 2, ran)
	require.Empty(t, e.hookErrors())
}
