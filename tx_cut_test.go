package millrace_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/internal/fault/proxy"
	"github.com/millrace-go/millrace/internal/testenv"
)

// ready commits once, so that drivers know their statements, and has the time for it.
func ready(t *testing.T, e *env) {
	require.NoError(t, e.InTx(t.Context(), func(ctx context.Context, tx handle) error { return note(ctx, tx, "first") },
		millrace.CommitTimeout(time.Minute)))
}

func TestACancelWhileCommitIsUnderWayIsIgnored(t *testing.T) {
	for _, driver := range drivers[:4] {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			e, p := proxied(t, driver, millrace.Config{CommitTimeout: time.Minute})
			ready(t, e)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			p.OnBytes(true, commitBytes(driver), func() {
				p.BlackholeReplies(true)
				cancel()
				time.AfterFunc(100*time.Millisecond, func() { p.BlackholeReplies(false) })
			})
			var j journal
			require.NoError(t, e.InTx(ctx, func(ctx context.Context, tx handle) error {
				return errors.Join(note(ctx, tx, "a"), j.all(ctx, ""))
			}))
			require.ErrorIs(t, ctx.Err(), context.Canceled)
			require.Equal(t, "a first", e.notes(t))
			require.Equal(t, "before, committed, done:committed", j.String())
		})
	}
}

// A connection that is lost without our noticing: ROLLBACK cannot be sent, and need not be.
func TestARollbackThatCannotBeSentIsOneNevertheless(t *testing.T) {
	for name, strike := range map[string]func(*proxy.Proxy){
		"cut":     func(p *proxy.Proxy) { p.Cut() },
		"stalled": func(p *proxy.Proxy) { p.Blackhole(true) },
	} {
		for _, driver := range drivers[:4] {
			t.Run(driver+", "+name, func(t *testing.T) {
				t.Parallel()
				e, p := proxied(t, driver, millrace.Config{})
				t.Cleanup(func() { heal(p) }) // ends what go-sql-driver waits for
				ready(t, e)
				var j journal
				err := e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
					require.NoError(t, note(ctx, tx, "a"))
					require.NoError(t, publish(ctx, e.db, "message"))
					require.NoError(t, j.all(ctx, ""))
					strike(p)
					return errBusiness
				})
				require.ErrorIs(t, err, errBusiness)
				var unknown *millrace.UnknownOutcomeError
				require.NotErrorAs(t, err, &unknown)
				require.Equal(t, "rolledback, done:rolled back", j.String())
				if driver == "pq" || driver == "pgx-stdlib" { // the others take their time
					testenv.Eventually(t, 30*time.Second, "the connection has gone", func() bool { return e.inUse() == 0 })
				}
				heal(p)
				require.Equal(t, "first", e.notes(t))
				testenv.Eventually(t, 30*time.Second, "connections given back", func() bool { return e.inUse() == 0 })
				require.NoError(t, e.InTx(t.Context(), func(ctx context.Context, tx handle) error { return note(ctx, tx, "next") }))
			})
		}
	}
}

func TestATransactionWhoseOutcomeIsUnknownIsNotRetried(t *testing.T) {
	for _, driver := range drivers[:4] {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			e, p := proxied(t, driver, millrace.Config{CommitTimeout: commitTimeout})
			t.Cleanup(func() { heal(p) })
			ready(t, e)
			p.OnBytes(true, commitBytes(driver), p.Cut)
			runs := 0
			err := e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
				runs++
				return note(ctx, tx, "a")
			}, millrace.Retries(5))
			var unknown *millrace.UnknownOutcomeError
			require.ErrorAs(t, err, &unknown)
			require.Equal(t, 1, runs)
		})
	}
}

// crossed runs two transactions that lock k1 and k2 in opposite order, the second lock inside of second.
func crossed(t *testing.T, e *env, second func(ctx context.Context, tx handle, lock func(context.Context, handle) error) error, opts ...millrace.TxOption) [2]error {
	_, err := e.admin.Exec("INSERT INTO notes VALUES ('k1'), ('k2')")
	require.NoError(t, err)
	type result struct {
		i   int
		err error
	}
	results := make(chan result)
	first := make(chan struct{}, 100)
	both := make(chan struct{})
	for i, keys := range [][2]string{{"k1", "k2"}, {"k2", "k1"}} {
		lock := func(key string) func(context.Context, handle) error {
			return func(ctx context.Context, tx handle) error {
				return tx.Exec(ctx, "UPDATE notes SET note = '"+key+"' WHERE note = '"+key+"'")
			}
		}
		go func() {
			results <- result{i, e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
				if err := lock(keys[0])(ctx, tx); err != nil {
					return err
				}
				first <- struct{}{}
				<-both
				return second(ctx, tx, lock(keys[1]))
			}, opts...)}
		}()
	}
	<-first
	<-first
	close(both)
	var errs [2]error
	for range errs {
		r := <-results
		errs[r.i] = r.err
	}
	return errs
}

func TestDeadlocks(t *testing.T) {
	conform(t, []scenario{
		{"one in a nested part ends the whole transaction on MySQL", []string{"mysql"}, func(t *testing.T, e *env) {
			errs := crossed(t, e, func(ctx context.Context, tx handle, lock func(context.Context, handle) error) error {
				err := e.InTx(ctx, lock, millrace.Nested())
				if err == nil {
					return nil
				}
				require.ErrorContains(t, err, "1213")
				require.ErrorIs(t, note(ctx, tx, "ghost"), millrace.ErrTxAborted)
				require.ErrorIs(t, publish(ctx, e.db, "ghost"), millrace.ErrTxAborted)
				require.ErrorIs(t, e.InTx(ctx, func(context.Context, handle) error { return nil }, millrace.Nested()), millrace.ErrTxAborted)
				return nil
			})
			one, other := errs[0], errs[1]
			if one == nil {
				one, other = other, one
			}
			require.ErrorIs(t, one, millrace.ErrTxAborted)
			require.NoError(t, other)
			require.Equal(t, "k1 k2", e.notes(t))
		}},
		{"one in a nested part ends that part alone on PostgreSQL", drivers[:3], func(t *testing.T, e *env) {
			errs := crossed(t, e, func(ctx context.Context, tx handle, lock func(context.Context, handle) error) error {
				if err := e.InTx(ctx, lock, millrace.Nested()); err != nil {
					require.ErrorContains(t, err, "deadlock")
					return note(ctx, tx, "went on")
				}
				return nil
			})
			require.Equal(t, [2]error{}, errs)
			require.Equal(t, "k1 k2 went on", e.notes(t))
		}},
		{"its victim is run again where that was asked for", drivers[:4], func(t *testing.T, e *env) {
			var j journal
			errs := crossed(t, e, func(ctx context.Context, tx handle, lock func(context.Context, handle) error) error {
				if err := millrace.AfterRollback(ctx, j.hook("victim")); err != nil {
					return err
				}
				if err := millrace.AfterCommit(ctx, j.hook("committed")); err != nil {
					return err
				}
				return lock(ctx, tx)
			}, millrace.Retries(100)) // the second run may overtake the survivor, and they meet again
			require.Equal(t, [2]error{}, errs)
			require.Contains(t, j.String(), "victim")
			require.Equal(t, 2, strings.Count(j.String(), "committed"), "each run has hooks of its own: %s", &j)
		}},
	})
}

func TestStatements(t *testing.T) {
	slow := map[string]string{
		"pgx": "SELECT pg_sleep(30)", "pgx-stdlib": "SELECT pg_sleep(30)", "pq": "SELECT pg_sleep(30)", "mysql": "SELECT SLEEP(2)",
		"sqlite": "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM c) SELECT MAX(x) FROM c",
	}
	conform(t, []scenario{
		{"one that is cut off by its own deadline leaves nothing behind", nil, func(t *testing.T, e *env) {
			var j journal
			err := e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
				require.NoError(t, note(ctx, tx, "a"))
				require.NoError(t, j.all(ctx, ""))
				short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
				defer cancel()
				_, err := tx.Count(short, slow[e.driver])
				require.Error(t, err)
				return err
			})
			require.Error(t, err)
			require.Empty(t, e.notes(t))
			require.Equal(t, "rolledback, done:rolled back", j.String())
			require.NoError(t, e.InTx(t.Context(), func(ctx context.Context, tx handle) error { return note(ctx, tx, "b") }))
		}},
		{"one that is cut off, and whose error is ignored, is not half a transaction", nil, func(t *testing.T, e *env) {
			var j journal
			err := e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
				require.NoError(t, note(ctx, tx, "a"))
				require.NoError(t, publish(ctx, e.db, "message"))
				require.NoError(t, j.all(ctx, ""))
				short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
				defer cancel()
				_, _ = tx.Count(short, slow[e.driver])
				_ = note(ctx, tx, "b")
				return nil
			})
			if err == nil { // SQLite gives up the statement alone; on a busy machine, it may not even have begun
				require.Equal(t, "a b message", e.notes(t))
				require.Equal(t, "before, committed, done:committed", j.String())
				return
			}
			require.Empty(t, e.notes(t))
			require.Contains(t, j.String(), "rolledback, done:rolled back")
		}},
		{"DDL is rolled back where it can be", []string{"pgx", "pgx-stdlib", "pq", "sqlite"}, func(t *testing.T, e *env) {
			err := e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
				require.NoError(t, tx.Exec(ctx, "CREATE TABLE more (i INT)"))
				require.NoError(t, tx.Exec(ctx, "INSERT INTO more VALUES (1)"))
				return errBusiness
			})
			require.Equal(t, errBusiness, err)
			_, err = e.admin.Exec("INSERT INTO more VALUES (1)")
			require.Error(t, err)
		}},
		{"one that fails alone is all that is lost, where the database keeps the rest", []string{"mysql", "sqlite"}, func(t *testing.T, e *env) {
			require.NoError(t, e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
				require.NoError(t, note(ctx, tx, "a"))
				require.Error(t, note(ctx, tx, "a"))
				return note(ctx, tx, "b")
			}))
			require.Equal(t, "a b", e.notes(t))
		}},
		{"several in one text are seen one by one", drivers[:3], func(t *testing.T, e *env) {
			var j journal
			require.NoError(t, e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
				require.NoError(t, tx.Exec(ctx, "SAVEPOINT one; INSERT INTO notes VALUES ('gone')"))
				require.NoError(t, millrace.AfterCommit(ctx, j.hook("gone")))
				require.NoError(t, tx.Exec(ctx, "ROLLBACK TO SAVEPOINT one; INSERT INTO notes VALUES ('stays')"))
				return millrace.AfterCommit(ctx, j.hook("stays"))
			}))
			require.Equal(t, "stays", e.notes(t))
			require.Equal(t, "stays", j.String())
		}},
	})
}
