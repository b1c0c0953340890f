package outbox

import (
	"context"
	"fmt"
	"regexp"
	"strings"

	"github.com/millrace-go/millrace/internal/migrate"
	"github.com/millrace-go/millrace/internal/txn"
)

// tables are all tables of an outbox.
var tables = []string{
	"millrace_outbox", "millrace_lanes", "millrace_forwarders", "millrace_stops", "millrace_schedules", "millrace_sending",
	"millrace_pauses", "millrace_dead", "millrace_sent", "millrace_confirmations", "millrace_history", "millrace_audit",
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

// checkPrivileges tries what every operation needs, on no row.
func (s *sqlStore) checkPrivileges(ctx context.Context, kind txn.Dialect) error {
	var missing []string
	var last error
	for _, table := range tables {
		for _, privilege := range []string{"SELECT", "INSERT", "UPDATE", "DELETE"} {
			ok, err := s.may(ctx, kind, table, privilege)
			if err != nil && !needsSetup(err) {
				return explain("check the privileges", err)
			}
			if !ok {
				missing, last = append(missing, privilege+" on "+table), err
			}
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return &setupError{
		what:   "privileges are missing: " + rename(strings.Join(missing, ", "), s.prefix),
		remedy: "GRANT SELECT, INSERT, UPDATE, DELETE ON " + rename(strings.Join(tables, ", "), s.prefix) + " TO the user of the outbox",
		cause:  last,
	}
}

// may reports whether the user has a privilege on a table. Databases that cannot be asked are tried.
func (s *sqlStore) may(ctx context.Context, kind txn.Dialect, table, privilege string) (ok bool, err error) {
	if kind == txn.Postgres {
		err = s.once(ctx, "check the privileges", fmt.Sprintf(`SELECT has_table_privilege('%s', '%s')`, table, privilege), nil,
			func(row txn.Scanner) error { return row.Scan(&ok) })
		return ok, err
	}
	column := map[string]string{"millrace_lanes": "lane", "millrace_stops": "pos", "millrace_pauses": "name", "millrace_audit": "seq"}[table]
	if column == "" {
		column = "id"
	}
	text := map[string]string{
		"SELECT": `SELECT 1 FROM ` + table + ` WHERE 1 = 0`,
		"INSERT": `INSERT INTO ` + table + ` SELECT * FROM ` + table + ` WHERE 1 = 0`,
		"UPDATE": `UPDATE ` + table + ` SET ` + column + ` = ` + column + ` WHERE 1 = 0`,
		"DELETE": `DELETE FROM ` + table + ` WHERE 1 = 0`,
	}[privilege]
	_, err = s.pool.Exec(ctx, rename(text, s.prefix))
	return err == nil, err
}
