package txn

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestStatementsAreUnderstood(t *testing.T) {
	t.Parallel()
	all := []Dialect{Postgres, MySQL, SQLite}
	for _, c := range []struct {
		text     string
		dialects []Dialect
		want     []effect
	}{
		{"", all, nil},
		{"SELECT 'COMMIT'", all, nil},
		{"SELECT 'it''s; COMMIT'", all, nil},
		{"SELECT ';' /* ; COMMIT */ -- ; COMMIT", all, nil},
		{"INSERT INTO t VALUES ($1, $2)", all, nil},
		{"select 1;commit", all, []effect{{verb: control}}},
		{"  \n-- why\ncommit", all, []effect{{verb: control}}},
		{`SELECT 'a\'; COMMIT; --'`, []Dialect{MySQL}, nil},
		{`SELECT 'a\'; COMMIT; --'`, []Dialect{Postgres, SQLite}, []effect{{verb: control}}},
		{`SELECT E'a\'; COMMIT; --'`, []Dialect{Postgres}, nil},
		{"SELECT $$; COMMIT $$", []Dialect{Postgres}, nil},
		{"SELECT $x$; $$ COMMIT $x$ ; ROLLBACK", []Dialect{Postgres}, []effect{{verb: control}}},
		{"/* /* */ COMMIT */ SELECT 1", []Dialect{Postgres}, nil},
		{"/* /* */ COMMIT", []Dialect{MySQL, SQLite}, []effect{{verb: control}}},
		{"/*!50000 COMMIT */", []Dialect{MySQL}, []effect{{verb: control}}},
		{"# x\nCOMMIT", []Dialect{MySQL}, []effect{{verb: control}}},
		{"PREPARE TRANSACTION 'x'", all, []effect{{verb: control}}},
		{"XA START 'x'", []Dialect{MySQL}, []effect{{verb: control}}},
		{`SAVEPOINT "A b"`, all, []effect{{save, "a b"}}},
		{"savepoint a; release a", all, []effect{{save, "a"}, {release, "a"}}},
		{"RELEASE SAVEPOINT a", all, []effect{{release, "a"}}},
		{"ROLLBACK TO a", all, []effect{{rollbackTo, "a"}}},
		{"ROLLBACK WORK TO SAVEPOINT a", all, []effect{{rollbackTo, "a"}}},
		{"ROLLBACK TRANSACTION TO SAVEPOINT a", all, []effect{{rollbackTo, "a"}}},
		{"CREATE TABLE t (i int)", []Dialect{Postgres, SQLite}, nil},
		{"CREATE TABLE t (i int)", []Dialect{MySQL}, []effect{{verb: implicit}}},
		{"CREATE TEMPORARY TABLE t (i int)", []Dialect{MySQL}, nil},
		{"SET SESSION autocommit = 1", []Dialect{MySQL}, []effect{{verb: implicit}}},
		{"SET NAMES utf8mb4", []Dialect{MySQL}, nil},
		{"CALL p()", all, []effect{{verb: opaque}}},
		{"'unclosed", all, nil},
		{"/* unclosed", all, nil},
		{"SELECT $", all, nil},
	} {
		for _, d := range c.dialects {
			require.Equal(t, c.want, scan(d, c.text), "%s: %s", d, c.text)
		}
	}
}

func TestReadsAreToldFromWrites(t *testing.T) {
	t.Parallel()
	for text, writes := range map[string]bool{
		"SELECT 1": false, "PRAGMA journal_mode": false, "with x as (select 1) select * from x": false,
		"INSERT INTO t VALUES (1) RETURNING i": true, "WITH x AS (SELECT 1) DELETE FROM t": true, "VACUUM": true,
	} {
		require.Equal(t, writes, Writes(text), text)
	}
}

func FuzzScan(f *testing.F) {
	f.Add("SELECT 'a'; COMMIT")
	f.Fuzz(func(t *testing.T, text string) {
		for _, d := range []Dialect{Postgres, MySQL, SQLite} {
			scan(d, text) // ends, and does not panic
		}
	})
}

func TestPlainStatementsCostNoAllocation(t *testing.T) {
	text := "INSERT INTO orders (id, customer, note) VALUES ($1, $2, 'x; y')"
	require.Zero(t, testing.AllocsPerRun(100, func() { scan(Postgres, text) }))
}
