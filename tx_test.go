package millrace_test

import (
	"context"
	"database/sql"
	"errors"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/internal/testenv"
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
			e := newEnv(t, driver, millrace.Config{})
			for _, s := range table {
				if s.only != nil && !slices.Contains(s.only, driver) {
					continue
				}
				t.Run(s.name, func(t *testing.T) {
					e.reset(t)
					s.run(t, e)
					testenv.Eventually(t, 30*time.Second, "connections given back", func() bool { return e.inUse() == 0 })
				})
			}
		})
	}
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
		{"negative options are refused before anything happens", nil, func(t *testing.T, e *env) {
			err := e.InTx(t.Context(), func(context.Context, handle) error { panic("not reached") },
				millrace.CommitTimeout(-1), millrace.Retries(-1))
			require.ErrorContains(t, err, "CommitTimeout is negative")
			require.ErrorContains(t, err, "Retries is negative")
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
		{"a nested part merges into the outer one, in order", nil, func(t *testing.T, e *env) {
			var j journal
			err := e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
				require.NoError(t, millrace.AfterCommit(ctx, j.hook("1")))
				require.NoError(t, e.InTx(ctx, func(ctx context.Context, tx handle) error {
					require.NoError(t, note(ctx, tx, "a"))
					return millrace.AfterCommit(ctx, j.hook("2"))
				}, millrace.Nested()))
				return millrace.AfterCommit(ctx, j.hook("3"))
			})
			require.NoError(t, err)
			require.Equal(t, "1, 2, 3", j.String())
			require.Equal(t, "a", e.notes(t))
		}},
		{"a rollback mark made inside of a nested part ends with it", nil, func(t *testing.T, e *env) {
			err := e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
				require.NoError(t, note(ctx, tx, "a"))
				err := e.InTx(ctx, func(ctx context.Context, tx handle) error {
					require.NoError(t, note(ctx, tx, "b"))
					_ = e.InTx(ctx, func(context.Context, handle) error { return errBusiness })
					return nil
				}, millrace.Nested())
				require.ErrorIs(t, err, millrace.ErrUnexpectedRollback)
				require.ErrorIs(t, err, errBusiness)
				require.NoError(t, e.InTx(ctx, func(ctx context.Context, tx handle) error {
					require.NoError(t, note(ctx, tx, "c"))
					return millrace.MarkRollbackOnly(ctx)
				}, millrace.Nested()))
				return nil
			})
			require.NoError(t, err)
			require.Equal(t, "a", e.notes(t))
		}},
		{"a nested part saves the transaction from a failed statement", nil, func(t *testing.T, e *env) {
			err := e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
				require.NoError(t, note(ctx, tx, "a"))
				err := e.InTx(ctx, func(ctx context.Context, tx handle) error { return note(ctx, tx, "a") }, millrace.Nested())
				require.Error(t, err)
				return note(ctx, tx, "b")
			})
			require.NoError(t, err)
			require.Equal(t, "a b", e.notes(t))
		}},
		{"a panic in a nested part undoes it, and goes on", nil, func(t *testing.T, e *env) {
			err := e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
				require.NoError(t, note(ctx, tx, "a"))
				require.PanicsWithValue(t, "boom", func() {
					_ = e.InTx(ctx, func(ctx context.Context, tx handle) error {
						_ = note(ctx, tx, "b")
						panic("boom")
					}, millrace.Nested())
				})
				return nil
			})
			require.NoError(t, err)
			require.Equal(t, "a", e.notes(t))
		}},
		{"RequiresNew commits by itself and runs its hooks before the outer goes on", []string{"pgx", "pgx-stdlib", "pq", "mysql"}, func(t *testing.T, e *env) {
			var j journal
			err := e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
				require.NoError(t, note(ctx, tx, "a"))
				require.NoError(t, j.all(ctx, "outer "))
				require.NoError(t, e.InTx(ctx, func(ctx context.Context, tx handle) error {
					require.NoError(t, note(ctx, tx, "b"))
					return j.all(ctx, "inner ")
				}, millrace.RequiresNew()))
				j.add("outer goes on")
				require.NoError(t, note(ctx, tx, "c"))
				return errBusiness
			})
			require.ErrorIs(t, err, errBusiness)
			require.Equal(t, "b", e.notes(t))
			require.Equal(t, "inner before, inner committed, inner done:committed, outer goes on, outer rolledback, outer done:rolled back", j.String())
		}},
		{"a second transaction on SQLite is refused instead of waiting for ever", []string{"sqlite"}, func(t *testing.T, e *env) {
			empty := func(context.Context, handle) error { return nil }
			err := e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
				require.ErrorIs(t, e.InTx(ctx, func(ctx context.Context, tx handle) error { return e.InTx(ctx, empty) }, millrace.NotSupported()),
					millrace.ErrUnsupported, "the transaction that is set aside is still there")
				return e.InTx(ctx, empty, millrace.RequiresNew())
			})
			require.ErrorIs(t, err, millrace.ErrUnsupported)
		}},
		{"where there is no transaction there are no hooks", nil, func(t *testing.T, e *env) {
			for _, o := range []millrace.TxOption{millrace.Supports(), millrace.NotSupported(), millrace.Never()} {
				err := e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
					n, err := tx.Count(ctx, "SELECT COUNT(*) FROM notes")
					require.NoError(t, err)
					require.Zero(t, n)
					return millrace.AfterCommit(ctx, func(context.Context) error { return nil })
				}, o)
				require.ErrorIs(t, err, millrace.ErrNoTransaction)
			}
			err := e.InTx(t.Context(), func(context.Context, handle) error { return nil }, millrace.Mandatory())
			require.ErrorIs(t, err, millrace.ErrNoTransaction)
		}},
		{"Mandatory and Supports join, Never refuses, NotSupported sets aside", nil, func(t *testing.T, e *env) {
			err := e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
				for i, o := range []millrace.TxOption{millrace.Mandatory(), millrace.Supports(), millrace.Required()} {
					require.NoError(t, e.InTx(ctx, func(ctx context.Context, tx handle) error {
						return note(ctx, tx, string(rune('a'+i)))
					}, o))
				}
				err := e.InTx(ctx, func(context.Context, handle) error { return nil }, millrace.Never())
				require.ErrorIs(t, err, millrace.ErrTransactionOpen)
				return e.InTx(ctx, func(ctx context.Context, tx handle) error {
					require.ErrorIs(t, millrace.AfterCommit(ctx, func(context.Context) error { return nil }), millrace.ErrNoTransaction)
					n, err := tx.Count(ctx, "SELECT COUNT(*) FROM notes")
					require.Zero(t, n, "it sees nothing of the open transaction")
					return err
				}, millrace.NotSupported())
			})
			require.NoError(t, err)
			require.Equal(t, "a b c", e.notes(t))
		}},
		{"asking for a rollback is no error", nil, func(t *testing.T, e *env) {
			var j journal
			err := e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
				require.NoError(t, note(ctx, tx, "a"))
				require.NoError(t, j.all(ctx, ""))
				return millrace.MarkRollbackOnly(ctx)
			})
			require.NoError(t, err)
			require.Empty(t, e.notes(t))
			require.Equal(t, "rolledback, done:rolled back", j.String())
		}},
		{"a panic rolls back and goes on", nil, func(t *testing.T, e *env) {
			var j journal
			require.PanicsWithValue(t, "boom", func() {
				_ = e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
					require.NoError(t, note(ctx, tx, "a"))
					require.NoError(t, publish(ctx, e.db, "message"))
					require.NoError(t, j.all(ctx, ""))
					panic("boom")
				})
			})
			require.Empty(t, e.notes(t))
			require.Equal(t, "rolledback, done:rolled back", j.String())
		}},
		{"runtime.Goexit rolls back", nil, func(t *testing.T, e *env) {
			var j journal
			done := make(chan struct{})
			go func() {
				defer close(done)
				_ = e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
					_ = note(ctx, tx, "a")
					_ = j.all(ctx, "")
					runtime.Goexit()
					return nil
				})
			}()
			<-done
			require.Empty(t, e.notes(t))
			require.Equal(t, "rolledback, done:rolled back", j.String())
		}},
		{"a context that ended before begin begins nothing", nil, func(t *testing.T, e *env) {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			err := e.InTx(ctx, func(context.Context, handle) error { t.Error("called"); return nil })
			require.ErrorIs(t, err, context.Canceled)
		}},
		{"a context that ended before COMMIT rolls back", nil, func(t *testing.T, e *env) {
			ctx, cancel := context.WithCancel(t.Context())
			var j journal
			err := e.InTx(ctx, func(ctx context.Context, tx handle) error {
				require.NoError(t, note(ctx, tx, "a"))
				require.NoError(t, publish(ctx, e.db, "message"))
				require.NoError(t, j.all(ctx, ""))
				cancel()
				require.ErrorIs(t, note(ctx, tx, "b"), context.Canceled)
				return nil
			})
			require.Equal(t, context.Canceled, err)
			require.Empty(t, e.notes(t))
			require.Equal(t, "rolledback, done:rolled back", j.String())
		}},
		{"a read-only transaction reads, and runs hooks", nil, func(t *testing.T, e *env) {
			var j journal
			err := e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
				_, err := tx.Count(ctx, "SELECT COUNT(*) FROM notes")
				require.NoError(t, err)
				return j.all(ctx, "")
			}, millrace.ReadOnly())
			require.NoError(t, err)
			require.Equal(t, "before, committed, done:committed", j.String())
			err = e.InTx(t.Context(), func(ctx context.Context, tx handle) error { return note(ctx, tx, "a") }, millrace.ReadOnly())
			require.Error(t, err)
			require.NoError(t, e.InTx(t.Context(), func(ctx context.Context, tx handle) error { return note(ctx, tx, "b") }),
				"the connection is as it was")
			require.Equal(t, "b", e.notes(t))
		}},
		{"joining with another isolation is refused", nil, func(t *testing.T, e *env) {
			err := e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
				require.NoError(t, e.InTx(ctx, func(context.Context, handle) error { return nil }, millrace.Isolation(sql.LevelSerializable)))
				return e.InTx(ctx, func(context.Context, handle) error { return nil }, millrace.Isolation(sql.LevelReadUncommitted))
			}, millrace.Isolation(sql.LevelSerializable))
			require.ErrorIs(t, err, millrace.ErrUnsupported)
		}},
		{"a swallowed error of a statement does not commit half", []string{"pgx", "pgx-stdlib", "pq"}, func(t *testing.T, e *env) {
			var j journal
			err := e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
				require.NoError(t, note(ctx, tx, "a"))
				require.NoError(t, j.all(ctx, ""))
				_ = note(ctx, tx, "a")
				require.ErrorIs(t, note(ctx, tx, "b"), millrace.ErrTxAborted)
				return nil
			})
			require.ErrorIs(t, err, millrace.ErrTxAborted)
			require.ErrorContains(t, err, "duplicate key")
			require.Empty(t, e.notes(t))
			require.Equal(t, "rolledback, done:rolled back", j.String())
		}},
		{"an error hidden in a row does not commit half", []string{"pgx", "pgx-stdlib", "pq"}, func(t *testing.T, e *env) {
			var j journal
			err := e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
				require.NoError(t, note(ctx, tx, "a"))
				require.NoError(t, j.all(ctx, ""))
				require.NoError(t, publish(ctx, e.db, "message"))
				_, err := tx.Count(ctx, "SELECT 1/(COUNT(*)-COUNT(*)) FROM notes")
				require.Error(t, err)
				return nil
			})
			require.Error(t, err)
			require.Empty(t, e.notes(t))
			require.Contains(t, j.String(), "rolledback, done:rolled back")
		}},
		{"a deferred constraint at COMMIT is a rollback", []string{"pgx", "pgx-stdlib", "pq"}, func(t *testing.T, e *env) {
			_, err := e.admin.Exec("CREATE TABLE twins (n int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
			require.NoError(t, err)
			var j journal
			err = e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
				require.NoError(t, publish(ctx, e.db, "message"))
				require.NoError(t, j.all(ctx, ""))
				require.NoError(t, tx.Exec(ctx, "INSERT INTO twins VALUES (1)"))
				return tx.Exec(ctx, "INSERT INTO twins VALUES (1)")
			})
			require.ErrorContains(t, err, "twins_n_key")
			var unknown *millrace.UnknownOutcomeError
			require.False(t, errors.As(err, &unknown))
			require.Empty(t, e.notes(t))
			require.Equal(t, "before, rolledback, done:rolled back", j.String())
		}},
		{"a flush that fails rolls back", nil, func(t *testing.T, e *env) {
			for _, messages := range [][]string{{"a"}, {"b", "a"}, {"a", "b", "c"}} {
				var j journal
				err := e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
					require.NoError(t, note(ctx, tx, "a"))
					for _, m := range messages {
						require.NoError(t, publish(ctx, e.db, m))
					}
					return j.all(ctx, "")
				})
				require.Error(t, err)
				require.Empty(t, e.notes(t))
				require.Equal(t, "before, rolledback, done:rolled back", j.String())
			}
		}},
		{"a serialization failure is run again when asked for", []string{"pgx", "pgx-stdlib", "pq"}, func(t *testing.T, e *env) {
			var j journal
			runs := 0
			err := e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
				runs++
				require.NoError(t, j.all(ctx, ""))
				_, err := tx.Count(ctx, "SELECT COUNT(*) FROM notes")
				require.NoError(t, err)
				if runs == 1 {
					_, err = e.admin.Exec("BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT COUNT(*) FROM notes; INSERT INTO notes VALUES ('theirs'); COMMIT")
					require.NoError(t, err)
				}
				return note(ctx, tx, "ours")
			}, millrace.Isolation(sql.LevelSerializable), millrace.Retries(3))
			require.NoError(t, err)
			require.Equal(t, 2, runs)
			require.Equal(t, "ours theirs", e.notes(t))
			require.Contains(t, j.String(), "rolledback, done:rolled back, before, committed, done:committed")
		}},
	})
}
