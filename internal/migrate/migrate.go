// Package migrate applies the SQL files of millrace's packages, each once, also when many replicas
// start at the same moment.
package migrate

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/millrace-go/millrace/internal/dberr"
	"github.com/millrace-go/millrace/internal/txn"
)

// File is one migration: <dialect>/NNNN_name.sql.
type File struct {
	Version int
	Name    string
	SQL     string
}

// Files lists the migrations of a dialect in order.
func Files(fsys fs.FS, dialect txn.Dialect) ([]File, error) {
	entries, err := fs.ReadDir(fsys, string(dialect))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("no migrations for %s", dialect)
	}
	if err != nil {
		return nil, err
	}
	var files []File
	for _, e := range entries {
		number, _, _ := strings.Cut(e.Name(), "_")
		version, err := strconv.Atoi(number)
		if err != nil || version <= 0 || path.Ext(e.Name()) != ".sql" {
			return nil, fmt.Errorf("migration %s/%s is not named NNNN_name.sql", dialect, e.Name())
		}
		text, err := fs.ReadFile(fsys, path.Join(string(dialect), e.Name()))
		if err != nil {
			return nil, err
		}
		files = append(files, File{Version: version, Name: e.Name(), SQL: string(text)})
	}
	slices.SortFunc(files, func(a, b File) int { return a.Version - b.Version })
	for i, f := range files {
		if f.Version != i+1 {
			return nil, fmt.Errorf("migration %s/%s: version %d is missing", dialect, f.Name, i+1)
		}
	}
	return files, nil
}

// Latest is the version that Apply brings a part to.
func Latest(fsys fs.FS, dialect txn.Dialect) (int, error) {
	files, err := Files(fsys, dialect)
	if err != nil {
		return 0, err
	}
	return len(files), nil
}

// Versions are the version of a part in the database, 0 if it was never applied, and the newest that the files
// know.
func Versions(ctx context.Context, p txn.Pool, part string, fsys fs.FS) (have, want int, err error) {
	dialect, err := p.Dialect(ctx)
	if err != nil {
		return 0, 0, err
	}
	if want, err = Latest(fsys, dialect); err != nil {
		return 0, 0, err
	}
	have, err = Version(ctx, p, part)
	return have, want, err
}

// Version is the newest version of a part that the database has, 0 if none. That the version table
// is missing counts as none.
func Version(ctx context.Context, q txn.Querier, part string) (int, error) {
	version := 0
	// The name is ours and safe to quote; without arguments no driver prepares the statement.
	query := `SELECT coalesce(max(version), 0) FROM millrace_schema WHERE part = '` + part + `'`
	err := q.Query(ctx, query, nil, func(row txn.Scanner) error { return row.Scan(&version) })
	if err != nil && missing(err) {
		return 0, nil
	}
	return version, err
}

// missing reports whether err says that a table is not there.
func missing(err error) bool {
	return dberr.SQLState(err) == "42P01" || dberr.MySQL(err) == 1146 ||
		dberr.SQLite(err) == 1 && strings.Contains(err.Error(), "no such table")
}

// Apply runs the files that the database does not have yet.
func Apply(ctx context.Context, p txn.Pool, part string, fsys fs.FS) error {
	dialect, err := p.Dialect(ctx)
	if err != nil {
		return err
	}
	files, err := Files(fsys, dialect)
	if err != nil {
		return err
	}
	return txn.Atomic(ctx, p, txn.Options{}, func(q txn.Querier) (err error) {
		unlock, err := lock(ctx, q, dialect)
		if err != nil {
			return fmt.Errorf("lock: %w", err)
		}
		defer func() { err = errors.Join(err, unlock()) }()
		for _, s := range versionTable(dialect) {
			if _, err := q.Exec(ctx, s); err != nil {
				return fmt.Errorf("version table: %w", err)
			}
		}
		have, err := Version(ctx, q, part)
		if err != nil {
			return fmt.Errorf("version: %w", err)
		}
		for _, f := range files[min(have, len(files)):] {
			if err := run(ctx, q, dialect, part, f); err != nil {
				return fmt.Errorf("%s: %w", f.Name, err)
			}
		}
		return nil
	})
}

func run(ctx context.Context, q txn.Querier, dialect txn.Dialect, part string, f File) error {
	for i, statement := range Split(f.SQL) {
		if _, err := q.Exec(ctx, statement); err != nil {
			return fmt.Errorf("statement %d: %w", i+1, err)
		}
	}
	// A file may have recorded itself, for those who run it with a tool of their own.
	_, err := q.Exec(ctx, fmt.Sprintf(record[dialect], part, f.Version))
	return err
}

var record = map[txn.Dialect]string{
	txn.Postgres: `INSERT INTO millrace_schema (part, version) VALUES ('%s', %d) ON CONFLICT DO NOTHING`,
	txn.MySQL:    `INSERT IGNORE INTO millrace_schema (part, version) VALUES ('%s', %d)`,
	txn.SQLite:   `INSERT OR IGNORE INTO millrace_schema (part, version) VALUES ('%s', %d)`,
}

// lock keeps all other migrations of the database waiting.
func lock(ctx context.Context, q txn.Querier, dialect txn.Dialect) (unlock func() error, err error) {
	none := func() error { return nil }
	switch dialect {
	case txn.Postgres: // ends with the transaction
		_, err := q.Exec(ctx, `SELECT pg_advisory_xact_lock(hashtextextended('millrace_schema ' || current_schema(), 0))`)
		return none, err
	case txn.MySQL: // DDL commits there, so it is a lock of the session
		got := 0
		err := q.Query(ctx, `SELECT coalesce(get_lock(concat('millrace_schema ', left(database(), 40)), 60), 0)`, nil,
			func(row txn.Scanner) error { return row.Scan(&got) })
		if err == nil && got == 0 {
			err = errors.New("another migration has been running for a minute")
		}
		return func() error {
			ctx := context.WithoutCancel(ctx) // the session outlives a canceled migration
			return q.Query(ctx, `SELECT release_lock(concat('millrace_schema ', left(database(), 40)))`, nil,
				func(row txn.Scanner) error { return row.Scan(new(any)) })
		}, err
	default: // the transaction is the only writer
		return none, nil
	}
}

func versionTable(dialect txn.Dialect) []string {
	columns := map[txn.Dialect]string{
		txn.Postgres: `part text NOT NULL, version integer NOT NULL, applied_at timestamptz NOT NULL DEFAULT now()`,
		txn.MySQL: `part VARCHAR(64) CHARACTER SET ascii NOT NULL, version INT NOT NULL,
			applied_at DATETIME(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6)`,
		txn.SQLite: `part TEXT NOT NULL, version INTEGER NOT NULL,
			applied_at INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000000 AS INTEGER))`,
	}
	return []string{`CREATE TABLE IF NOT EXISTS millrace_schema (` + columns[dialect] + `, PRIMARY KEY (part, version))`}
}

// Split cuts a file into statements: each ends with a semicolon at the end of a line, outside of a
// $$ body. Comments on lines of their own are dropped.
func Split(text string) []string {
	var (
		statements []string
		b          strings.Builder
		inBody     bool
	)
	for line := range strings.Lines(text) {
		trimmed := strings.TrimSpace(line)
		if !inBody && (trimmed == "" || strings.HasPrefix(trimmed, "--")) {
			continue
		}
		b.WriteString(line)
		if strings.Count(line, "$$")%2 == 1 {
			inBody = !inBody
		}
		if !inBody && strings.HasSuffix(trimmed, ";") {
			statements = append(statements, strings.TrimSuffix(strings.TrimSpace(b.String()), ";"))
			b.Reset()
		}
	}
	if rest := strings.TrimSpace(b.String()); rest != "" {
		statements = append(statements, rest)
	}
	return statements
}
