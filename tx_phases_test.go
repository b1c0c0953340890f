package millrace_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/internal/txn"
)

// ending is how a call ended: it returned, panicked, or ended its goroutine.
type ending struct {
	err      error
	panicked any
	exited   bool
}

func call(fn func() error) ending {
	ended := make(chan ending, 1)
	go func() {
		e := ending{exited: true}
		defer func() { ended <- e }()
		defer func() {
			if v := recover(); v != nil {
				e = ending{panicked: v}
			}
		}()
		err := fn()
		e = ending{err: err}
	}()
	return <-ended
}

// mishaps are what can go wrong in a function of the user's.
var mishaps = map[string]struct {
	do  func() error
	how ending // of fn or a BeforeCommit hook that does it
}{
	"an error":        {func() error { return errBusiness }, ending{err: errBusiness}},
	"a panic":         {func() error { panic("boom") }, ending{panicked: "boom"}},
	"runtime.Goexit":  {func() error { runtime.Goexit(); return nil }, ending{exited: true}},
	"an error panics": {func() error { panic(errBusiness) }, ending{panicked: errBusiness}},
}

// registerIn registers fn for a phase of the transaction in ctx.
var registerIn = map[string]func(ctx context.Context, fn func(context.Context) error) error{
	"before commit": func(ctx context.Context, fn func(context.Context) error) error { return millrace.BeforeCommit(ctx, fn) },
	"after commit":  func(ctx context.Context, fn func(context.Context) error) error { return millrace.AfterCommit(ctx, fn) },
	"after rollback": func(ctx context.Context, fn func(context.Context) error) error {
		return millrace.AfterRollback(ctx, fn)
	},
	"after completion": func(ctx context.Context, fn func(context.Context) error) error {
		return millrace.AfterCompletion(ctx, func(ctx context.Context, _ millrace.Outcome) error { return fn(ctx) })
	},
}

// Every mishap in every phase, with a healthy hook before and behind it.
func TestEveryMishapInEveryPhaseIsContained(t *testing.T) {
	var table []scenario
	for phase, register := range registerIn {
		for mishap, m := range mishaps {
			table = append(table, scenario{mishap + " " + phase, nil, func(t *testing.T, e *env) {
				var j journal
				inside := func(ctx context.Context, tx handle) error {
					err := errors.Join(note(ctx, tx, "a"), publish(ctx, e.db, "message"),
						register(ctx, j.hook("first")), register(ctx, func(context.Context) error { return m.do() }), register(ctx, j.hook("last")),
						millrace.AfterCompletion(ctx, func(_ context.Context, o millrace.Outcome) error { j.add("%v", o); return nil }, millrace.Order(1)))
					if err == nil && phase == "after rollback" {
						err = errBusiness
					}
					return err
				}
				got := call(func() error { return e.InTx(t.Context(), inside) })
				switch phase {
				case "before commit":
					require.Equal(t, m.how, got)
					require.Empty(t, e.notes(t))
					require.Equal(t, "first, rolled back", j.String())
					require.Empty(t, e.hookErrors(), "the caller knows")
					return
				case "after rollback":
					require.Empty(t, e.notes(t))
					require.Equal(t, "first, last, rolled back", j.String())
				default:
					require.Equal(t, "a message", e.notes(t))
					require.Equal(t, "first, last, committed", j.String())
				}
				require.Len(t, e.hookErrors(), 1)
				require.Equal(t, phase, e.hookErrors()[0].Phase)
				switch {
				case mishap == "runtime.Goexit":
					require.True(t, got.exited, "it goes on when all hooks have run")
					require.ErrorIs(t, e.hookErrors()[0].Err, millrace.ErrHookExited)
				case phase == "after rollback":
					require.Equal(t, ending{err: errBusiness}, got, "what fn returned")
				default:
					require.Equal(t, ending{}, got, "committed is committed")
				}
			}})
		}
		table = append(table, scenario{"a hook that registers a hook " + phase, nil, func(t *testing.T, e *env) {
			var j journal
			_ = e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
				err := register(ctx, func(ctx context.Context) error {
					for _, late := range []string{"before commit", "after commit", "after rollback", "after completion"} {
						if err := registerIn[late](ctx, j.hook(late)); err != nil {
							require.ErrorIs(t, err, millrace.ErrNoTransaction)
							j.add("refused")
						}
					}
					return nil
				})
				if phase == "after rollback" {
					return errors.Join(err, errBusiness)
				}
				return err
			})
			if phase == "before commit" {
				require.Equal(t, "before commit, after commit, after completion", j.String())
			} else {
				require.Equal(t, "refused, refused, refused, refused", j.String())
			}
		}})
	}
	conform(t, table)
}

// Every mishap of a function, in every kind of part of a transaction, with a caller who lets it pass.
func TestEveryMishapInEveryPartRollsBackThatPart(t *testing.T) {
	var table []scenario
	for mishap, m := range mishaps {
		for name, part := range map[string]struct {
			how  millrace.TxOption
			only []string
		}{
			"joined": {millrace.Required(), nil}, "nested": {millrace.Nested(), nil}, "new": {millrace.RequiresNew(), drivers[:4]},
		} {
			table = append(table, scenario{mishap + " in a " + name + " part", part.only, func(t *testing.T, e *env) {
				var j journal
				got := call(func() error {
					return e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
						require.NoError(t, note(ctx, tx, "outer"))
						require.NoError(t, j.all(ctx, "outer "))
						return e.InTx(ctx, func(ctx context.Context, tx handle) error {
							require.NoError(t, note(ctx, tx, "inner"))
							require.NoError(t, j.all(ctx, "inner "))
							return m.do()
						}, part.how)
					})
				})
				require.Equal(t, m.how, got)
				require.Empty(t, e.notes(t))
				want := "outer rolledback, inner rolledback, outer done:rolled back, inner done:rolled back"
				if name == "new" {
					want = "inner rolledback, inner done:rolled back, outer rolledback, outer done:rolled back"
				}
				require.Equal(t, want, j.String())
				require.Empty(t, e.hookErrors())
			}})
		}
	}
	conform(t, table)
}

func explode() error { panic("boom") }

func TestAPanicKeepsItsStack(t *testing.T) {
	t.Parallel()
	e := newEnv(t, "sqlite", millrace.Config{})
	defer func() {
		require.Equal(t, "boom", recover())
		stack := make([]byte, 1<<16)
		stack = stack[:runtime.Stack(stack, false)]
		require.Contains(t, string(stack), "explode", "as if InTx had not been there")
	}()
	_ = e.InTx(t.Context(), func(context.Context, handle) error { return explode() })
}

// flusher is a participant whose buffer is empty.
type flusher func()

func (f flusher) Flush(context.Context) ([]txn.Statement, error) { f(); return nil, nil }

func TestWhileItCommitsATransactionTakesNoMoreHooks(t *testing.T) {
	conform(t, []scenario{{"late", nil, func(t *testing.T, e *env) {
		var refused error
		require.NoError(t, e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
			inner, _ := txn.From(ctx, e.db.TxnPool())
			_, err := inner.Attach("late", func() any {
				return flusher(func() { refused = millrace.AfterCommit(ctx, nothing) })
			})
			return err
		}))
		require.ErrorIs(t, refused, millrace.ErrTxCompleted)
	}}})
}

func TestTheNamesOfHooksInReportsAreThoseOfTheirFunctions(t *testing.T) {
	t.Parallel()
	e := newEnv(t, "sqlite", millrace.Config{})
	require.NoError(t, e.InTx(t.Context(), func(ctx context.Context, _ handle) error {
		return errors.Join(millrace.AfterCommit(ctx, fails), millrace.AfterCommit(ctx, fails, millrace.Name("mine")))
	}))
	var names []string
	for _, h := range e.hookErrors() {
		names = append(names, h.Name[strings.LastIndex(h.Name, ".")+1:])
	}
	require.Equal(t, "[fails mine]", fmt.Sprint(names))
}
