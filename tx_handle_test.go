package millrace_test

import (
	"context"
	"database/sql"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/internal/testenv"
)

func TestHandle(t *testing.T) {
	mysql, postgres := []string{"mysql"}, []string{"pgx", "pgx-stdlib", "pq"}
	conform(t, []scenario{
		{"it refuses use after the end", nil, func(t *testing.T, e *env) {
			var kept handle
			require.NoError(t, e.InTx(t.Context(), func(_ context.Context, tx handle) error { kept = tx; return nil }))
			require.ErrorIs(t, note(t.Context(), kept, "late"), millrace.ErrTxCompleted)
			_, err := kept.Count(t.Context(), "SELECT COUNT(*) FROM notes")
			require.ErrorIs(t, err, millrace.ErrTxCompleted)
		}},
		{"it refuses to begin and end transactions", nil, func(t *testing.T, e *env) {
			require.NoError(t, e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
				for _, text := range []string{
					"COMMIT", "commit work", " /* x */ ROLLBACK", "BEGIN", "START TRANSACTION", "END", "ABORT",
					"-- x\nCOMMIT", "SELECT 1; COMMIT", "PREPARE TRANSACTION 'x'", "COMMIT AND CHAIN",
				} {
					require.ErrorIs(t, tx.Exec(ctx, text), millrace.ErrTxControl, text)
				}
				return note(ctx, tx, "a; COMMIT; --")
			}))
			require.Equal(t, "a; COMMIT; --", e.notes(t))
		}},
		{"it refuses two goroutines at once", nil, func(t *testing.T, e *env) {
			slow := map[string]string{
				"pgx": "SELECT pg_sleep(0.1)", "pgx-stdlib": "SELECT pg_sleep(0.1)", "pq": "SELECT pg_sleep(0.1)",
				"mysql":  "DO SLEEP(0.1)",
				"sqlite": "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM c WHERE x < 20000) DELETE FROM notes WHERE note = (SELECT MAX(x) FROM c)",
			}[e.driver]
			var refused error
			err := e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
				var met atomic.Bool
				done := make(chan error)
				go func() { // again and again, until the two have met
					for {
						err := tx.Exec(ctx, slow)
						if err != nil && !errors.Is(err, millrace.ErrConcurrentUse) || err == nil && met.Load() {
							done <- err
							return
						}
					}
				}()
				for {
					select {
					case err := <-done:
						return err
					case <-time.After(time.Millisecond):
						if err := tx.Exec(ctx, "SELECT 1"); err != nil {
							refused = err
							met.Store(true)
						}
					}
				}
			})
			require.NoError(t, err)
			require.ErrorIs(t, refused, millrace.ErrConcurrentUse)
		}},
		{"a statement that still runs when fn returns rolls back", postgres, func(t *testing.T, e *env) {
			done := make(chan error, 1)
			err := e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
				require.NoError(t, note(ctx, tx, "a"))
				go func() { done <- tx.Exec(ctx, "SELECT pg_sleep(300)") }()
				testenv.Eventually(t, 30*time.Second, "the statement runs", func() bool {
					var n int
					err := e.admin.QueryRow("SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND query = 'SELECT pg_sleep(300)' AND wait_event = 'PgSleep'").Scan(&n)
					return err == nil && n == 1
				})
				return nil
			})
			require.ErrorIs(t, err, millrace.ErrConcurrentUse)
			require.Error(t, <-done)
			require.Empty(t, e.notes(t))
		}},
		{"it refuses what commits implicitly", mysql, func(t *testing.T, e *env) {
			require.NoError(t, e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
				for _, text := range []string{
					"CREATE TABLE x (i int)", "drop table notes", "/*!40000 ALTER */ TABLE notes ADD x int", "TRUNCATE notes",
					"LOCK TABLES notes WRITE", "SET autocommit=1", "# x\nRENAME TABLE notes TO x",
				} {
					require.ErrorIs(t, tx.Exec(ctx, text), millrace.ErrImplicitCommit, text)
				}
				return tx.Exec(ctx, "CREATE TEMPORARY TABLE x (i int)")
			}))
		}},
		{"a deadlock victim is refused everything, nothing of it remains", mysql, func(t *testing.T, e *env) {
			_, err := e.admin.Exec("INSERT INTO notes VALUES ('k1'), ('k2')")
			require.NoError(t, err)
			var j journal
			victims := 0
			for range 20 {
				errs := make(chan error, 2)
				ready, goOn := make(chan struct{}), make(chan struct{})
				for _, order := range [][2]string{{"k1", "k2"}, {"k2", "k1"}} {
					go func() {
						errs <- e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
							_ = millrace.AfterCommit(ctx, j.hook("committed "+order[0]))
							if err := tx.Exec(ctx, "UPDATE notes SET note = note WHERE note = '"+order[0]+"'"); err != nil {
								return err
							}
							// a prepared statement hides its error from the handle
							stmt, err := tx.(sqlHandle).tx.PrepareContext(ctx, "UPDATE notes SET note = note WHERE note = ?")
							if err != nil {
								return err
							}
							ready <- struct{}{}
							<-goOn
							if _, swallowed := stmt.ExecContext(ctx, order[1]); swallowed != nil {
								_ = publish(ctx, e.db, "ghost")
							}
							return nil
						})
					}()
				}
				<-ready
				<-ready
				close(goOn)
				for range 2 {
					if err := <-errs; err != nil {
						require.ErrorIs(t, err, millrace.ErrTxAborted)
						victims++
					}
				}
			}
			require.Equal(t, 20, victims)
			require.Equal(t, "k1 k2", e.notes(t))
		}},
		{"a procedure that commits is noticed before the flush", mysql, func(t *testing.T, e *env) {
			_, err := e.admin.Exec("CREATE PROCEDURE sneak() COMMIT")
			require.NoError(t, err)
			var j journal
			err = e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
				require.NoError(t, publish(ctx, e.db, "message"))
				require.NoError(t, j.all(ctx, ""))
				return tx.Exec(ctx, "CALL sneak()")
			})
			var unknown *millrace.UnknownOutcomeError
			require.ErrorAs(t, err, &unknown)
			require.ErrorIs(t, err, millrace.ErrTxAborted)
			require.Empty(t, e.notes(t))
			require.Equal(t, "before, done:unknown", j.String())
		}},
		{"a lock wait timeout rolls back, or a savepoint saves the rest", mysql, func(t *testing.T, e *env) {
			_, err := e.admin.Exec("INSERT INTO notes VALUES ('k')")
			require.NoError(t, err)
			locker, err := e.admin.Begin()
			require.NoError(t, err)
			_, err = locker.Exec("UPDATE notes SET note = 'k' WHERE note = 'k'")
			require.NoError(t, err)
			_, err = locker.Exec("DELETE FROM notes WHERE note = 'k'")
			require.NoError(t, err)
			defer locker.Rollback()
			wait := func(ctx context.Context, tx handle) error {
				require.NoError(t, tx.Exec(ctx, "SET innodb_lock_wait_timeout = 1"))
				return tx.Exec(ctx, "UPDATE notes SET note = 'x' WHERE note = 'k'")
			}
			err = e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
				require.NoError(t, note(ctx, tx, "a"))
				require.ErrorContains(t, wait(ctx, tx), "1205")
				return nil
			})
			require.ErrorIs(t, err, millrace.ErrTxAborted)
			require.NoError(t, e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
				require.NoError(t, note(ctx, tx, "b"))
				require.ErrorContains(t, e.InTx(ctx, wait, millrace.Nested()), "1205")
				return nil
			}))
			require.NoError(t, locker.Rollback())
			require.Equal(t, "b k", e.notes(t))
		}},
		{"a killed connection aborts", []string{"pgx", "pgx-stdlib", "pq", "mysql"}, func(t *testing.T, e *env) {
			id, kill := "SELECT pg_backend_pid()", "SELECT pg_terminate_backend($1)"
			if e.driver == "mysql" {
				id, kill = "SELECT CONNECTION_ID()", "KILL ?"
			}
			var j journal
			err := e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
				require.NoError(t, note(ctx, tx, "a"))
				require.NoError(t, j.all(ctx, ""))
				n, err := tx.Count(ctx, id)
				require.NoError(t, err)
				_, err = e.admin.Exec(kill, n)
				require.NoError(t, err)
				for range 2 {
					require.Error(t, note(ctx, tx, "b"))
				}
				require.ErrorIs(t, note(ctx, tx, "c"), millrace.ErrTxAborted)
				require.ErrorIs(t, millrace.AfterCommit(ctx, nothing), millrace.ErrTxAborted)
				return nil
			})
			require.ErrorIs(t, err, millrace.ErrTxAborted)
			require.Empty(t, e.notes(t))
			require.Equal(t, "rolledback, done:rolled back", j.String())
		}},
		{"SQLite's own rollback is noticed", []string{"sqlite"}, func(t *testing.T, e *env) {
			err := e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
				require.NoError(t, note(ctx, tx, "a"))
				require.Error(t, tx.Exec(ctx, "INSERT OR ROLLBACK INTO notes VALUES ('a')"))
				require.ErrorIs(t, note(ctx, tx, "b"), millrace.ErrTxAborted)
				return nil
			})
			require.ErrorIs(t, err, millrace.ErrTxAborted)
			require.Empty(t, e.notes(t))
		}},
		{"a statement with a deadline of its own ends the transaction, not half of it", nil, func(t *testing.T, e *env) {
			ctx, cancel := context.WithCancel(t.Context())
			err := e.InTx(ctx, func(outer context.Context, tx handle) error {
				require.NoError(t, note(outer, tx, "a"))
				cancel()
				return nil
			})
			require.ErrorIs(t, err, context.Canceled)
			require.NoError(t, e.InTx(t.Context(), func(ctx context.Context, tx handle) error { return note(ctx, tx, "b") }))
			require.Equal(t, "b", e.notes(t))
		}},
		{"a COMMIT past it is noticed, nothing is flushed outside", nil, func(t *testing.T, e *env) {
			var j journal
			err := e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
				require.NoError(t, publish(ctx, e.db, "before"))
				require.NoError(t, j.all(ctx, ""))
				require.NoError(t, tx.Raw(ctx, "COMMIT"))
				require.ErrorIs(t, publish(ctx, e.db, "after"), millrace.ErrTxAborted)
				return nil
			})
			require.ErrorIs(t, err, millrace.ErrTxAborted)
			require.Equal(t, "before", e.notes(t))
			require.NotContains(t, j.String(), "committed,")
		}},
		{"a COMMIT past it with nothing after is an unknown outcome", nil, func(t *testing.T, e *env) {
			var j journal
			err := e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
				require.NoError(t, note(ctx, tx, "a"))
				require.NoError(t, j.all(ctx, ""))
				return tx.Raw(ctx, "COMMIT")
			})
			var unknown *millrace.UnknownOutcomeError
			require.ErrorAs(t, err, &unknown)
			require.Equal(t, "a", e.notes(t))
			require.Equal(t, "before, done:unknown", j.String())
		}},
		{"after Unwrap messages are written at once, in order", nil, func(t *testing.T, e *env) {
			err := e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
				require.NoError(t, publish(ctx, e.db, "m1"))
				require.NoError(t, tx.Raw(ctx, "INSERT INTO notes VALUES ('raw')"))
				n, err := tx.Count(ctx, "SELECT COUNT(*) FROM notes")
				require.NoError(t, err)
				require.Equal(t, 2, n)
				require.NoError(t, tx.Raw(ctx, "SAVEPOINT unseen"))
				require.NoError(t, publish(ctx, e.db, "m2"))
				require.NoError(t, tx.Raw(ctx, "ROLLBACK TO SAVEPOINT unseen"))
				return publish(ctx, e.db, "m3")
			})
			require.NoError(t, err)
			require.Equal(t, "m1 m3 raw", e.notes(t))
		}},
	})
}

// What the libraries ask of a transaction.
var (
	_ interface { // sqlc's DBTX, ent's ExecQuerier, bun's IConn
		ExecContext(context.Context, string, ...any) (sql.Result, error)
		PrepareContext(context.Context, string) (*sql.Stmt, error)
		QueryContext(context.Context, string, ...any) (*sql.Rows, error)
		QueryRowContext(context.Context, string, ...any) *sql.Row
	} = (*millrace.Tx)(nil)
	_ interface { // squirrel's BaseRunner, sqlx's Execer
		Exec(string, ...any) (sql.Result, error)
		Query(string, ...any) (*sql.Rows, error)
		QueryRow(string, ...any) *sql.Row
		Prepare(string) (*sql.Stmt, error)
	} = (*millrace.Tx)(nil)
)
