package millrace_test

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace"
)

var errBusiness = errors.New("business says no")

// scenario is one row of the conformance table: it holds for every driver named, or for all.
type scenario struct {
	name string
	only []string
	run  func(t *testing.T, e *env)
}

func conform(t *testing.T, table []scenario) {
	for _, driver := range drivers {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			for _, s := range table {
				if s.only != nil && !contains(s.only, driver) {
					continue
				}
				t.Run(s.name, func(t *testing.T) {
					e := newEnv(t, driver, millrace.Config{})
					s.run(t, e)
					require.Zero(t, e.inUse(), "connections not given back")
				})
			}
		})
	}
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}

func TestTransactions(t *testing.T) {
	conform(t, []scenario{
		{"nil commits, hooks run in order, the connection is back", nil, func(t *testing.T, e *env) {
			var j journal
			err := e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
				require.NoError(t, note(ctx, tx, "a"))
				require.NoError(t, publish(ctx, e.db, "message"))
				require.NoError(t, millrace.AfterCommit(ctx, func(ctx context.Context) error {
					j.add("in use: %d", e.inUse())
					return nil
				}))
				return j.all(ctx, "")
			})
			require.NoError(t, err)
			require.Equal(t, "a message", e.notes(t))
			require.Equal(t, "before, in use: 0, committed, done:committed", j.String())
		}},
		{"an error rolls back", nil, func(t *testing.T, e *env) {
			var j journal
			err := e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
				require.NoError(t, note(ctx, tx, "a"))
				require.NoError(t, publish(ctx, e.db, "message"))
				require.NoError(t, j.all(ctx, ""))
				return errBusiness
			})
			require.Equal(t, errBusiness, err)
			require.Empty(t, e.notes(t))
			require.Equal(t, "rolledback, done:rolled back", j.String())
		}},
		{"a joined part commits with the whole", nil, func(t *testing.T, e *env) {
			var j journal
			err := e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
				require.NoError(t, j.all(ctx, "outer "))
				err := e.InTx(ctx, func(ctx context.Context, tx handle) error {
					require.NoError(t, note(ctx, tx, "a"))
					return j.all(ctx, "inner ")
				})
				j.add("between")
				return err
			})
			require.NoError(t, err)
			require.Equal(t, "a", e.notes(t))
			require.Equal(t, "between, outer before, inner before, outer committed, inner committed, outer done:committed, inner done:committed", j.String())
		}},
		{"an ignored error of a joined part rolls the whole back", nil, func(t *testing.T, e *env) {
			var j journal
			err := e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
				require.NoError(t, note(ctx, tx, "a"))
				require.NoError(t, j.all(ctx, ""))
				_ = e.InTx(ctx, func(context.Context, handle) error { return errBusiness })
				return nil
			})
			require.ErrorIs(t, err, millrace.ErrUnexpectedRollback)
			require.ErrorIs(t, err, errBusiness)
			require.Empty(t, e.notes(t))
			require.Equal(t, "rolledback, done:rolled back", j.String())
		}},
		{"a nested part rolls back alone, with its hooks and messages", nil, func(t *testing.T, e *env) {
			var j journal
			err := e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
				require.NoError(t, note(ctx, tx, "a"))
				require.NoError(t, publish(ctx, e.db, "m1"))
				require.NoError(t, j.all(ctx, "outer "))
				err := e.InTx(ctx, func(ctx context.Context, tx handle) error {
					require.NoError(t, note(ctx, tx, "b"))
					require.NoError(t, publish(ctx, e.db, "m2"))
					require.NoError(t, j.all(ctx, "inner "))
					return errBusiness
				}, millrace.Nested())
				require.Equal(t, errBusiness, err)
				require.NoError(t, publish(ctx, e.db, "m3"))
				return nil
			})
			require.NoError(t, err)
			require.Equal(t, "a m1 m3", e.notes(t))
			require.Equal(t, "outer before, outer committed, inner rolledback, outer done:committed, inner done:rolled back", j.String())
		}},
	})
}
