package outbox

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/millrace-go/millrace/internal/migrate"
	"github.com/millrace-go/millrace/internal/txn"
)

// tables are the tables that an outbox has in every database.
var tables = []string{
	"millrace_outbox", "millrace_lanes", "millrace_forwarders", "millrace_stops", "millrace_schedules", "millrace_sending",
	"millrace_pauses", "millrace_dead", "millrace_sent", "millrace_confirmations", "millrace_history", "millrace_audit",
}

// tablesOf are all tables of an outbox in a database.
func tablesOf(kind txn.Dialect) []string {
	if kind == txn.MySQL {
		return append(slices.Clone(tables), "millrace_flush")
	}
	return tables
}

// index is an index that the migrations make, and the statement that makes it.
type index struct{ name, table, create string }

var (
	createIndex = regexp.MustCompile(`CREATE INDEX IF NOT EXISTS (\w+) ON (\w+) [^;]+`)
	createTable = regexp.MustCompile(`CREATE TABLE IF NOT EXISTS (\w+) \(`)
	tableKey    = regexp.MustCompile(`(?m)^    ((?:UNIQUE )?KEY (\w+) \([^)]*\)),?$`)
)

// indexes are those of the migrations of a database.
func indexes(kind txn.Dialect, prefix string) ([]index, error) {
	files, err := migrate.Files(Migrations(Config{Prefix: prefix}).Files, kind)
	if err != nil {
		return nil, err
	}
	var all []index
	for _, f := range files {
		for _, m := range createIndex.FindAllStringSubmatch(f.SQL, -1) {
			all = append(all, index{m[1], m[2], m[0]})
		}
		if kind != txn.MySQL {
			continue
		}
		starts := createTable.FindAllStringSubmatchIndex(f.SQL, -1)
		for i, at := range starts {
			end := len(f.SQL)
			if i+1 < len(starts) {
				end = starts[i+1][0]
			}
			table := f.SQL[at[2]:at[3]]
			for _, m := range tableKey.FindAllStringSubmatch(f.SQL[at[0]:end], -1) {
				all = append(all, index{m[2], table, "ALTER TABLE " + table + " ADD " + m[1]})
			}
		}
	}
	return all, nil
}

// checkIndexes looks for each index, and says how a missing one is made.
func (s *sqlStore) checkIndexes(ctx context.Context, kind txn.Dialect) error {
	want, err := indexes(kind, s.prefix)
	if err != nil {
		return explain("check the indexes", err)
	}
	query := map[txn.Dialect]string{
		txn.Postgres: `SELECT c.relname, i.indisvalid::int FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
			WHERE i.indrelid IN (` + strings.Join(quoted(tables, "::regclass"), ", ") + `)`,
		txn.MySQL:  `SELECT DISTINCT index_name, 1 FROM information_schema.statistics WHERE table_schema = DATABASE()`,
		txn.SQLite: `SELECT name, 1 FROM sqlite_master WHERE type = 'index'`,
	}[kind]
	there := map[string]int{}
	err = s.once(ctx, "check the indexes", query, nil, func(row txn.Scanner) error {
		var name string
		var valid int
		err := row.Scan(&name, &valid)
		there[name] = valid
		return err
	})
	if err != nil {
		return err
	}
	var missing, create []string
	for _, i := range want {
		switch valid, found := there[i.name]; {
		case !found:
			missing, create = append(missing, i.name), append(create, i.create+";")
		case valid == 0:
			missing, create = append(missing, i.name+" (invalid)"), append(create, "DROP INDEX "+i.name+"; "+i.create+";")
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return &setupError{what: "indexes are missing: " + strings.Join(missing, ", "), remedy: strings.Join(strings.Fields(strings.Join(create, " ")), " ")}
}

func quoted(names []string, suffix string) (out []string) {
	for _, n := range names {
		out = append(out, "'"+n+"'"+suffix)
	}
	return out
}

// checkPrivileges names what the user may not do. SQLite has no users.
func (s *sqlStore) checkPrivileges(ctx context.Context, kind txn.Dialect) (err error) {
	var missing []string
	switch kind {
	case txn.Postgres:
		missing, err = s.notGranted(ctx)
	case txn.MySQL:
		missing, err = s.refused(ctx)
	}
	if err != nil || len(missing) == 0 {
		return err
	}
	return &setupError{
		what:   "privileges are missing: " + rename(strings.Join(missing, ", "), s.prefix),
		remedy: "GRANT SELECT, INSERT, UPDATE, DELETE ON " + rename(strings.Join(tablesOf(kind), ", "), s.prefix) + " TO the user of the outbox",
	}
}

// notGranted asks PostgreSQL.
func (s *sqlStore) notGranted(ctx context.Context) (missing []string, err error) {
	err = s.once(ctx, "check the privileges", `SELECT p || ' on ' || t FROM unnest(ARRAY[`+strings.Join(quoted(tables, ""), ", ")+`]) WITH ORDINALITY AS t(t, i)
		CROSS JOIN unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS p WHERE NOT has_table_privilege(t, p) ORDER BY i`, nil,
		func(row txn.Scanner) error {
			var one string
			err := row.Scan(&one)
			missing = append(missing, one)
			return err
		})
	return missing, err
}

// refused tries on MySQL, which cannot be asked, what every operation needs, on no row.
func (s *sqlStore) refused(ctx context.Context) (missing []string, err error) {
	columns := map[string]string{"millrace_lanes": "lane", "millrace_stops": "pos", "millrace_pauses": "name", "millrace_audit": "seq", "millrace_flush": "n"}
	for _, table := range tablesOf(txn.MySQL) {
		column := columns[table]
		if column == "" {
			column = "id"
		}
		for _, try := range []struct{ privilege, text string }{
			{"SELECT", `SELECT 1 FROM %[1]s WHERE 1 = 0`},
			{"INSERT", `INSERT INTO %[1]s SELECT * FROM %[1]s WHERE 1 = 0`},
			{"UPDATE", `UPDATE %[1]s SET %[2]s = %[2]s WHERE 1 = 0`},
			{"DELETE", `DELETE FROM %[1]s WHERE 1 = 0`},
		} {
			args := []any{table, column}[:1+strings.Count(try.text, "%[2]")/2]
			_, err := s.pool.Exec(ctx, rename(fmt.Sprintf(try.text, args...), s.prefix))
			switch {
			case err != nil && !needsSetup(err):
				return nil, explain("check the privileges", err)
			case err != nil:
				missing = append(missing, try.privilege+" on "+table)
			}
		}
	}
	return missing, nil
}
