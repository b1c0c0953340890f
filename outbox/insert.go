package outbox

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/millrace-go/millrace/internal/txn"
)

// maxRows bounds the parameters of one INSERT: PostgreSQL and MySQL take 65,535. SQLite takes 32,766,
// but its driver needs time with the square of their number, and has no round trips to save.
const (
	maxRows       = 1000
	maxRowsSQLite = 100
)

// maxBytes bounds one INSERT, well below the smallest max_allowed_packet in use (16 MiB).
const maxBytes = 4 << 20

// insertion is one multi-row INSERT. Positions are drawn in the order of the entries. The columns that
// few rows need are only there if one of them does.
func insertion(dialect txn.Dialect, prefix string, entries []entry) (string, []any) {
	wide := slices.ContainsFunc(entries, func(e entry) bool { return !e.plain() })
	var b strings.Builder
	b.WriteString(`INSERT INTO millrace_outbox (id, lane, topic, order_key, size, metadata, payload`)
	if wide {
		b.WriteString(`, ready, due_at, schedule, keep, keep_us, plan`)
	}
	if dialect == txn.MySQL {
		b.WriteString(`, created_at`)
	}
	b.WriteString(`) VALUES `)
	shape := shapeOf(dialect, wide)
	args := make([]any, 0, len(entries)*strings.Count(shape, "?"))
	for i, e := range entries {
		if i > 0 {
			b.WriteString(", ")
		}
		writeRow(&b, dialect, shape, len(args))
		args = append(args, e.id, e.lane, e.topic, e.key, e.size(), e.metadata, e.payload)
		if wide {
			args = append(args, flag(!e.due.delayed()), null(e.due.after), null(e.due.at))
			args = append(args, nonzero(e.schedule), e.keep, nonzero(e.micros), nonzero(e.plan))
		}
	}
	return rename(b.String(), prefix), args
}

// shapeOf is one row of an INSERT, with ? for its parameters.
func shapeOf(dialect txn.Dialect, wide bool) string {
	const plain = `?, ?, ?, ?, ?, ?, ?`
	switch {
	case dialect == txn.MySQL && wide:
		return plain + `, ?, COALESCE(UTC_TIMESTAMP(6) + INTERVAL ? MICROSECOND, CAST('1970-01-01' AS DATETIME(6)) + INTERVAL ? MICROSECOND), ?, ?, ?, ?, UTC_TIMESTAMP(6)`
	case dialect == txn.MySQL:
		return plain + `, UTC_TIMESTAMP(6)`
	case dialect == txn.SQLite && wide:
		return plain + `, ?, COALESCE(` + sqliteNow + ` + ?, ?), ?, ?, ?, ?`
	case wide:
		return plain + `, ?::int = 1, coalesce(clock_timestamp() + ?::bigint * interval '1 microsecond', ` +
			`'epoch'::timestamptz + ?::bigint * interval '1 microsecond'), ?::text, ?::int, ?::bigint, ?::text`
	}
	return plain
}

// writeRow writes a row whose first parameter comes after so many others.
func writeRow(b *strings.Builder, dialect txn.Dialect, shape string, before int) {
	b.WriteByte('(')
	if dialect != txn.Postgres {
		b.WriteString(shape)
	} else {
		for text, more := shape, true; more; {
			var head string
			if head, text, more = strings.Cut(text, "?"); more {
				before++
				b.WriteString(head)
				b.WriteByte('$')
				b.WriteString(strconv.Itoa(before))
				continue
			}
			b.WriteString(head)
		}
	}
	b.WriteByte(')')
}

// null is the value of a parameter that may be NULL.
func null(n *int64) any {
	if n == nil {
		return nil
	}
	return *n
}

func nonzero[T comparable](v T) any {
	var zero T
	if v == zero {
		return nil
	}
	return v
}

// naming is the INSERT of the schedule names of the entries that have one, "" if none does.
func naming(dialect txn.Dialect, prefix string, entries []entry) (string, []any) {
	var args []any
	var b strings.Builder
	b.WriteString(`INSERT INTO millrace_schedules (name, id) VALUES `)
	for _, e := range entries {
		if e.schedule == "" {
			continue
		}
		if len(args) > 0 {
			b.WriteString(", ")
		}
		writeRow(&b, dialect, "?, ?", len(args))
		args = append(args, e.schedule, e.id)
	}
	if len(args) == 0 {
		return "", nil
	}
	return rename(b.String(), prefix), args
}

// chunks cuts entries into what one INSERT carries.
func chunks(dialect txn.Dialect, entries []entry) [][]entry {
	most := maxRows
	if dialect == txn.SQLite {
		most = maxRowsSQLite
	}
	var cut [][]entry
	start, bytes := 0, 0
	for i, e := range entries {
		if i > start && (i-start == most || bytes+e.size() > maxBytes) {
			cut = append(cut, entries[start:i])
			start, bytes = i, 0
		}
		bytes += e.size()
	}
	if start < len(entries) {
		cut = append(cut, entries[start:])
	}
	return cut
}

// insertions are the statements that insert entries, each of which fails the transaction by an error
// without content.
func insertions(dialect txn.Dialect, prefix string, entries []entry) []txn.Statement {
	var stmts []txn.Statement
	for _, chunk := range chunks(dialect, entries) {
		text, args := insertion(dialect, prefix, chunk)
		stmts = append(stmts, txn.Statement{SQL: text, Args: args, Check: func(_ int64, err error) error {
			return insertError(dialect, prefix, ErrDuplicateMessage, err)
		}})
		if text, args := naming(dialect, prefix, chunk); text != "" {
			stmts = append(stmts, txn.Statement{SQL: text, Args: args, Check: func(_ int64, err error) error {
				return insertError(dialect, prefix, ErrDuplicateSchedule, err)
			}})
		}
	}
	return stmts
}

// insertError names an error; twice is what the violation of a unique key means.
func insertError(dialect txn.Dialect, prefix string, twice, err error) error {
	switch {
	case err == nil:
		return nil
	case duplicate(dialect, err):
		return fmt.Errorf("%w: %w", twice, quiet(err))
	case needsSetup(err):
		return setup(prefix, quiet(err))
	}
	return explain("insert", err)
}

// setup adds to err what most probably mends it.
func setup(prefix string, err error) error {
	return &setupError{
		what:   "the tables " + prefix + "* cannot be used",
		remedy: "apply the migrations (millrace.Migrate with outbox.Migrations) and grant SELECT, INSERT, UPDATE and DELETE on them",
		cause:  err,
	}
}
