package millrace_test

import (
	"context"
	"database/sql"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace"
)

// orm is the transaction function of every ORM.
func orm(ctx context.Context, db *sql.DB, fn func(tx *sql.Tx) error) (err error) {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	done := false
	defer func() {
		if !done {
			_ = tx.Rollback()
		}
	}()
	if err = fn(tx); err != nil {
		return err
	}
	done = true
	return tx.Commit()
}

// onlyTwo is what ent gives: nothing but ExecContext and QueryContext.
type onlyTwo struct{ millrace.ForeignTx }

func TestBind(t *testing.T) {
	sqls := []string{"pgx-stdlib", "pq", "mysql", "sqlite"}
	run := func(t *testing.T, e *env, fn func(ctx context.Context, tx *sql.Tx) error, after error) error {
		db := e.db.(*millrace.SQLDB)
		return millrace.Bind(t.Context(), db, func(ctx context.Context, b *millrace.Binding) error {
			return orm(ctx, e.pool, func(tx *sql.Tx) error {
				if err := b.Run(ctx, onlyTwo{tx}, func(ctx context.Context) error { return fn(ctx, tx) }); err != nil {
					return err
				}
				return after
			})
		})
	}
	conform(t, []scenario{
		{"an ORM's transaction has hooks and messages", sqls, func(t *testing.T, e *env) {
			var j journal
			err := run(t, e, func(ctx context.Context, tx *sql.Tx) error {
				_, err := tx.ExecContext(ctx, "INSERT INTO notes VALUES ('a')")
				require.NoError(t, err)
				require.NoError(t, publish(ctx, e.db, "message"))
				require.NoError(t, e.InTx(ctx, func(ctx context.Context, tx handle) error { return note(ctx, tx, "joined") }))
				return j.all(ctx, "")
			}, nil)
			require.NoError(t, err)
			require.Equal(t, "a joined message", e.notes(t))
			require.Equal(t, "before, committed, done:committed", j.String())
		}},
		{"an error rolls the ORM's transaction back", sqls, func(t *testing.T, e *env) {
			var j journal
			err := run(t, e, func(ctx context.Context, tx *sql.Tx) error {
				require.NoError(t, publish(ctx, e.db, "message"))
				require.NoError(t, j.all(ctx, ""))
				return errBusiness
			}, nil)
			require.Equal(t, errBusiness, err)
			require.Empty(t, e.notes(t))
			require.Equal(t, "rolledback, done:rolled back", j.String())
		}},
		{"asking for a rollback is an error here, because the owner decides", sqls, func(t *testing.T, e *env) {
			err := run(t, e, func(ctx context.Context, tx *sql.Tx) error {
				require.NoError(t, publish(ctx, e.db, "message"))
				return millrace.MarkRollbackOnly(ctx)
			}, nil)
			require.ErrorIs(t, err, millrace.ErrUnexpectedRollback)
			require.Empty(t, e.notes(t))
		}},
		{"an error behind Run leaves the outcome unknown", sqls, func(t *testing.T, e *env) {
			var j journal
			err := run(t, e, func(ctx context.Context, tx *sql.Tx) error { return j.all(ctx, "") }, errBusiness)
			var unknown *millrace.UnknownOutcomeError
			require.ErrorAs(t, err, &unknown)
			require.ErrorIs(t, err, errBusiness)
			require.Equal(t, "before, done:unknown", j.String())
		}},
		{"a panic passes through", sqls, func(t *testing.T, e *env) {
			var j journal
			require.PanicsWithValue(t, "boom", func() {
				_ = run(t, e, func(ctx context.Context, tx *sql.Tx) error {
					require.NoError(t, publish(ctx, e.db, "message"))
					require.NoError(t, j.all(ctx, ""))
					panic("boom")
				}, nil)
			})
			require.Empty(t, e.notes(t))
			require.Equal(t, "rolledback, done:rolled back", j.String())
		}},
	})
}
