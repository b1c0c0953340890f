package millrace_test

import (
	"context"
	"database/sql"
	"errors"
	"sync"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/internal/testenv"
)

// migratable are the databases that Migrate works on.
var migratable = map[string]func(t *testing.T) *sql.DB{
	"postgres": func(t *testing.T) *sql.DB { return sqlHandleOf(t, "pgx", testenv.Postgres(t)) },
	"mariadb":  func(t *testing.T) *sql.DB { return sqlHandleOf(t, "mysql", testenv.MariaDB(t)) },
	"sqlite": func(t *testing.T) *sql.DB {
		return sqlHandleOf(t, "sqlite", "file:"+testenv.SQLite(t)+"?_pragma=journal_mode(wal)&_pragma=busy_timeout(5000)")
	},
}

func sqlHandleOf(t *testing.T, driver, source string) *sql.DB {
	t.Helper()
	db, err := sql.Open(driver, source)
	require.NoError(t, err)
	t.Cleanup(func() { _ = db.Close() })
	return db
}

// files is a part with these SQL texts, the same for all dialects.
func files(name string, texts ...string) millrace.Part {
	fsys := fstest.MapFS{}
	for i, text := range texts {
		for _, dialect := range []string{"postgres", "mysql", "sqlite"} {
			fsys[dialect+"/000"+string(rune('1'+i))+"_step.sql"] = &fstest.MapFile{Data: []byte(text)}
		}
	}
	return millrace.Part{Name: name, Files: fsys}
}

func count(t *testing.T, db *sql.DB, query string) (n int) {
	t.Helper()
	require.NoError(t, db.QueryRowContext(t.Context(), query).Scan(&n))
	return n
}

const first = "-- +goose Up\nCREATE TABLE a (n INT);\n\n-- a comment; with a semicolon\nINSERT INTO a VALUES (1);\nINSERT INTO a\n  VALUES (2);\n"

func TestMigrateAppliesEachFileOnceAlsoWhenManyReplicasStartAtOnce(t *testing.T) {
	t.Parallel()
	for name, connect := range migratable {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			raw := connect(t)
			db := millrace.SQL(raw)
			var replicas sync.WaitGroup
			for range 6 {
				replicas.Go(func() {
					if err := millrace.Migrate(t.Context(), db, files("one", first), files("two", "CREATE TABLE b (n INT);\n")); err != nil {
						t.Error(err)
					}
				})
			}
			replicas.Wait()
			require.Equal(t, 2, count(t, raw, `SELECT count(*) FROM a`))
			require.Equal(t, 2, count(t, raw, `SELECT count(*) FROM millrace_schema`))

			require.NoError(t, millrace.Migrate(t.Context(), db, files("one", first, "INSERT INTO a VALUES (3);\n")))
			require.Equal(t, 3, count(t, raw, `SELECT count(*) FROM a`))
			require.NoError(t, millrace.Migrate(t.Context(), db, files("one", first)), "a newer schema is left alone")
			require.Equal(t, 2, count(t, raw, `SELECT max(version) FROM millrace_schema WHERE part = 'one'`))
		})
	}
}

func TestAMigrationThatFailsLeavesNothingAndNamesItsFile(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"postgres", "sqlite"} { // MySQL commits each statement
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			raw := migratable[name](t)
			err := millrace.Migrate(t.Context(), millrace.SQL(raw), files("one", first+"INSERT INTO nowhere VALUES (1);\n"))
			require.ErrorContains(t, err, "millrace: migrate one: 0001_step.sql: statement 4:")
			require.NoError(t, millrace.Migrate(t.Context(), millrace.SQL(raw), files("one", first)))
			require.Equal(t, 2, count(t, raw, `SELECT count(*) FROM a`))
		})
	}
}

func TestMigrateIsRefusedInsideATransaction(t *testing.T) {
	t.Parallel()
	db := millrace.SQL(migratable["sqlite"](t))
	err := millrace.InTx(t.Context(), db, func(ctx context.Context, _ *millrace.Tx) error {
		err := millrace.Migrate(ctx, db, files("one", first))
		require.ErrorIs(t, err, millrace.ErrTransactionOpen)
		return errors.New("done")
	})
	require.EqualError(t, err, "done")
}

func TestMigrateNamesEveryBadPart(t *testing.T) {
	t.Parallel()
	db := millrace.SQL(migratable["sqlite"](t))
	err := millrace.Migrate(t.Context(), db, files("Robert'); DROP", first), millrace.Part{Name: "empty"})
	require.ErrorContains(t, err, "Robert")
	require.ErrorContains(t, err, `"empty"`)
	gap := files("gap", first, first)
	delete(gap.Files.(fstest.MapFS), "sqlite/0001_step.sql")
	require.ErrorContains(t, millrace.Migrate(t.Context(), db, gap), "version 1 is missing")
	require.ErrorContains(t, millrace.Migrate(t.Context(), db, millrace.Part{Name: "none", Files: fstest.MapFS{}}), "no migrations for sqlite")
}
