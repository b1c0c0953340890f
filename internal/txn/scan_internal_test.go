package txn

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

var all = []Dialect{Postgres, MySQL, SQLite}

// statements are texts with what they do to the transaction.
var statements = []struct {
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
	{`e'a\'; COMMIT; --'`, []Dialect{Postgres}, nil},
	{`SELECT 'x' LIKE'a\'; COMMIT; --'`, []Dialect{Postgres}, []effect{{verb: control}}},
	{`SELECT E'a\'; COMMIT; --'`, []Dialect{SQLite}, []effect{{verb: control}}},
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
}

func TestStatementsAreUnderstood(t *testing.T) {
	t.Parallel()
	for _, c := range statements {
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

// As a test it takes the statements above, each cut off at every byte as well.
func FuzzScan(f *testing.F) {
	for _, c := range statements {
		for end := range len(c.text) + 1 {
			f.Add(c.text[:end])
		}
	}
	for _, text := range []string{"$$", "$a$b$a", "$1$2", `E'\`, "''''", "/*/*/**/", "--", "#", ";;;", "/*!50000", "\x00\xff", "SAVEPOINT", "ROLLBACK TO", `""""`} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		for _, d := range all {
			found := scan(d, text) // ends, and does not panic
			for _, e := range found {
				if e.verb == plain {
					t.Errorf("%s: %q: no effect is not one", d, text)
				}
			}
			if behind := scan(d, "SELECT 1;"+text); !slices.Equal(behind, found) {
				t.Errorf("%s: %q: behind a statement %v, alone %v", d, text, behind, found)
			}
			Writes(text)
		}
	})
}

func TestPlainStatementsCostNoAllocation(t *testing.T) {
	text := "INSERT INTO orders (id, customer, note) VALUES ($1, $2, 'x; y')"
	require.Zero(t, testing.AllocsPerRun(100, func() { scan(Postgres, text) }))
}
