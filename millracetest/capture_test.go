package millracetest_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"testing"

	_ "github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	_ "modernc.org/sqlite"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/internal/txn"
	"github.com/millrace-go/millrace/millracetest"
	"github.com/millrace-go/millrace/pgxtx"
)

func TestMain(m *testing.M) { testenv.Main(m) }

var errBusiness = errors.New("business says no")

// suite is one that rolls every test back, on one kind of database.
type suite struct {
	db    millrace.DB
	inTx  func(ctx context.Context, fn func(ctx context.Context) error, opts ...millrace.TxOption) error
	test  func(t *testing.T, test func(ctx context.Context))
	write func(ctx context.Context, note string) error
	raw   func(ctx context.Context, statement string) error
	log   []string
}

func (s *suite) hook(text string) func(context.Context) error {
	return func(context.Context) error { s.log = append(s.log, text); return nil }
}

func (s *suite) take() string {
	got := strings.Join(s.log, ", ")
	s.log = nil
	return got
}

// all registers a hook of each phase.
func (s *suite) all(ctx context.Context, prefix string) error {
	return errors.Join(
		millrace.BeforeCommit(ctx, s.hook(prefix+"before")),
		millrace.AfterCommit(ctx, s.hook(prefix+"committed"), millrace.Name(prefix+"mail")),
		millrace.AfterRollback(ctx, s.hook(prefix+"rolledback"), millrace.Name(prefix+"undo")),
		millrace.AfterCompletion(ctx, func(_ context.Context, o millrace.Outcome) error {
			return s.hook(fmt.Sprint(prefix, o))(ctx)
		}, millrace.Name(prefix+"end")))
}

func onSQL[T any](s *suite, db millrace.TxDB[T], exec func(ctx context.Context, tx T, statement string) error) {
	s.db = db
	s.inTx = func(ctx context.Context, fn func(context.Context) error, opts ...millrace.TxOption) error {
		return millrace.InTx(ctx, db, func(ctx context.Context, _ T) error { return fn(ctx) }, opts...)
	}
	s.test = func(t *testing.T, test func(context.Context)) {
		millracetest.RolledBack(t, db, func(ctx context.Context, _ T) { test(ctx) })
	}
	s.raw = func(ctx context.Context, statement string) error {
		return millrace.InTx(ctx, db, func(ctx context.Context, tx T) error { return exec(ctx, tx, statement) }, millrace.Mandatory())
	}
	s.write = func(ctx context.Context, note string) error {
		return millrace.InTx(ctx, db, func(ctx context.Context, tx T) error {
			return exec(ctx, tx, "INSERT INTO notes VALUES ('"+note+"')")
		})
	}
}

// notes lists what the transaction in ctx sees, or, without one, what was committed.
func (s *suite) notes(t *testing.T, ctx context.Context) string {
	var all []string
	var q txn.Querier = s.db.TxnPool()
	if open, ok := txn.From(ctx, s.db.TxnPool()); ok {
		q = open
	}
	require.NoError(t, q.Query(ctx, "SELECT note FROM notes ORDER BY note", nil, func(row txn.Scanner) error {
		var note string
		err := row.Scan(&note)
		all = append(all, note)
		return err
	}))
	return strings.Join(all, " ")
}

func each(t *testing.T, test func(t *testing.T, s *suite)) {
	exec := func(ctx context.Context, tx *millrace.Tx, statement string) error {
		_, err := tx.ExecContext(ctx, statement)
		return err
	}
	open := func(t *testing.T, driver, dsn string) *millrace.SQLDB {
		db, err := sql.Open(driver, dsn)
		require.NoError(t, err)
		t.Cleanup(func() { _ = db.Close() })
		return millrace.SQL(db)
	}
	for driver, build := range map[string]func(t *testing.T) *suite{
		"sqlite": func(t *testing.T) (s *suite) {
			s = &suite{}
			onSQL(s, open(t, "sqlite", "file:"+testenv.SQLite(t)+"?_pragma=journal_mode(WAL)"), exec)
			return s
		},
		"mysql": func(t *testing.T) (s *suite) {
			s = &suite{}
			onSQL(s, open(t, "mysql", testenv.MariaDB(t)), exec)
			return s
		},
		"pgx": func(t *testing.T) (s *suite) {
			pool, err := pgxpool.New(t.Context(), testenv.Postgres(t))
			require.NoError(t, err)
			t.Cleanup(pool.Close)
			s = &suite{}
			onSQL(s, pgxtx.Pool(pool), func(ctx context.Context, tx pgx.Tx, statement string) error {
				_, err := tx.Exec(ctx, statement)
				return err
			})
			return s
		},
	} {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			s := build(t)
			_, err := s.db.TxnPool().Exec(t.Context(), "CREATE TABLE notes (note VARCHAR(200) PRIMARY KEY)")
			require.NoError(t, err)
			test(t, s)
			require.Empty(t, s.notes(t, t.Context()), "nothing is left of a test")
		})
	}
}

func TestTwoCapturesInOneTestEachSeeTheirOwnHooks(t *testing.T) {
	each(t, func(t *testing.T, s *suite) {
		s.test(t, func(ctx context.Context) {
			require.NoError(t, s.all(ctx, "test's "))
			for i := range 2 {
				got, err := millracetest.Capture(ctx, s.db, func(ctx context.Context) error {
					return s.inTx(ctx, func(ctx context.Context) error {
						return errors.Join(s.write(ctx, fmt.Sprint("order ", i)), s.all(ctx, ""))
					})
				})
				require.NoError(t, err)
				require.Equal(t, millrace.Committed, got.Outcome)
				require.Equal(t, []millracetest.Hook{{"after commit", "mail"}, {"after completion", "end"}}, got.Hooks)
				require.Equal(t, "before", s.take())
				require.Empty(t, got.Run())
				require.Equal(t, "committed, committed", s.take())
				require.Empty(t, got.Run(), "once")
				require.Empty(t, s.take())
			}
			require.Equal(t, "order 0 order 1", s.notes(t, ctx))
		})
		require.Equal(t, "test's rolledback, test's rolled back", s.take())
	})
}

func TestSavepointsThatAreRolledBackTakeTheirHooksAlong(t *testing.T) {
	each(t, func(t *testing.T, s *suite) {
		s.test(t, func(ctx context.Context) {
			got, err := millracetest.Capture(ctx, s.db, func(ctx context.Context) error {
				_ = s.inTx(ctx, func(ctx context.Context) error {
					return errors.Join(s.write(ctx, "inner"), s.all(ctx, "nested "), errBusiness)
				}, millrace.Nested())
				return errors.Join(
					s.raw(ctx, "SAVEPOINT mine"), s.all(ctx, "raw "), s.raw(ctx, "ROLLBACK TO SAVEPOINT mine"),
					s.all(ctx, "outer "))
			})
			require.NoError(t, err)
			require.Empty(t, got.Run())
			require.Equal(t, "outer before, nested rolledback, raw rolledback, outer committed, nested rolled back, raw rolled back, outer committed", s.take())
			require.Empty(t, s.notes(t, ctx))
		})
	})
}

func TestAFailureIsUndoneAndTheTestGoesOn(t *testing.T) {
	each(t, func(t *testing.T, s *suite) {
		s.test(t, func(ctx context.Context) {
			for _, fail := range []func(ctx context.Context) error{
				func(context.Context) error { return errBusiness },
				func(ctx context.Context) error {
					return millrace.BeforeCommit(ctx, func(context.Context) error { return errBusiness })
				},
				func(ctx context.Context) error { return s.raw(ctx, "INSERT INTO nowhere VALUES (1)") },
				func(ctx context.Context) error {
					_ = s.inTx(ctx, func(context.Context) error { return errBusiness })
					return nil
				},
			} {
				got, err := millracetest.Capture(ctx, s.db, func(ctx context.Context) error {
					require.NoError(t, errors.Join(s.write(ctx, "gone"), millrace.AfterRollback(ctx, s.hook("undo")), millrace.AfterCommit(ctx, s.hook("wrong"))))
					return fail(ctx)
				})
				require.Error(t, err)
				require.Equal(t, millrace.RolledBack, got.Outcome)
				require.Empty(t, got.Run())
				require.Equal(t, "undo", s.take())
			}
			got, err := millracetest.Capture(ctx, s.db, func(ctx context.Context) error {
				return errors.Join(s.write(ctx, "gone"), millrace.MarkRollbackOnly(ctx))
			})
			require.NoError(t, err)
			require.Equal(t, millrace.RolledBack, got.Outcome)
			require.Empty(t, s.notes(t, ctx))
		})
	})
}

func TestHooksAndListenersMayWriteInTheirOwnTransaction(t *testing.T) {
	type placed struct{ ID string }
	each(t, func(t *testing.T, s *suite) {
		bus := millrace.NewBus(millrace.BusConfig{})
		millrace.On(bus, millrace.PhaseAfterCommit, func(ctx context.Context, e placed) error {
			return s.inTx(ctx, func(ctx context.Context) error {
				return errors.Join(s.write(ctx, "invoice "+e.ID), millrace.AfterCommit(ctx, s.hook("invoiced")))
			})
		}, millrace.ListenerName("invoice"))
		millrace.On(bus, millrace.PhaseAfterCommit, func(ctx context.Context, e placed) error {
			return s.inTx(ctx, func(ctx context.Context) error { return errors.Join(s.write(ctx, "gone"), errBusiness) })
		}, millrace.ListenerName("broken"))
		s.test(t, func(ctx context.Context) {
			got, err := millracetest.Capture(ctx, s.db, func(ctx context.Context) error {
				return s.inTx(ctx, func(ctx context.Context) error {
					return errors.Join(s.write(ctx, "order 1"), bus.Emit(ctx, placed{"1"}))
				})
			})
			require.NoError(t, err)
			require.Equal(t, []millracetest.Hook{{"after commit", "invoice"}, {"after commit", "broken"}}, got.Hooks)
			require.Equal(t, "order 1", s.notes(t, ctx), "nothing has run")
			failed := got.Run()
			require.Len(t, failed, 1)
			require.Equal(t, "broken", failed[0].Name)
			require.ErrorIs(t, failed[0].Err, errBusiness)
			require.Equal(t, "invoice 1 order 1", s.notes(t, ctx))
			require.Equal(t, "invoiced", s.take())
		})
	})
}

func TestAsyncHooksHaveRunWhenRunReturns(t *testing.T) {
	each(t, func(t *testing.T, s *suite) {
		s.test(t, func(ctx context.Context) {
			got, err := millracetest.Capture(ctx, s.db, func(ctx context.Context) error {
				return millrace.AfterCommit(ctx, s.hook("async"), millrace.Async())
			})
			require.NoError(t, err)
			require.Empty(t, got.Run())
			require.Equal(t, "async", s.take())
		})
	})
}

func TestAPanicGoesOnAndTheHooksOfTheTestRemain(t *testing.T) {
	each(t, func(t *testing.T, s *suite) {
		s.test(t, func(ctx context.Context) {
			require.NoError(t, millrace.AfterRollback(ctx, s.hook("test's")))
			require.PanicsWithValue(t, "boom", func() {
				_, _ = millracetest.Capture(ctx, s.db, func(ctx context.Context) error {
					_ = s.write(ctx, "gone")
					panic("boom")
				})
			})
			require.Empty(t, s.notes(t, ctx))
		})
		require.Equal(t, "test's", s.take())
	})
}

func TestWithoutATransactionThereIsNothingToCapture(t *testing.T) {
	each(t, func(t *testing.T, s *suite) {
		got, err := millracetest.Capture(t.Context(), s.db, func(context.Context) error { return nil })
		require.ErrorIs(t, err, millrace.ErrNoTransaction)
		require.Empty(t, got.Run())
	})
}
