package outbox

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/millrace-go/millrace/internal/txn"
)

// columns is the number of parameters of an inserted row.
const columns = 7

// maxRows bounds the parameters of one INSERT: PostgreSQL and MySQL take 65,535. SQLite takes 32,766,
// but its driver needs time with the square of their number, and has no round trips to save.
const (
	maxRows       = 1000
	maxRowsSQLite = 100
)

// maxBytes bounds one INSERT, well below the smallest max_allowed_packet in use (16 MiB).
const maxBytes = 4 << 20

// insertion is one multi-row INSERT. Positions are drawn in the order of the entries.
func insertion(dialect txn.Dialect, prefix string, entries []entry) (string, []any) {
	args := make([]any, 0, columns*len(entries))
	var b strings.Builder
	b.WriteString(`INSERT INTO millrace_outbox (id, lane, topic, order_key, size, metadata, payload`)
	if dialect == txn.MySQL {
		b.WriteString(`, created_at`)
	}
	b.WriteString(`) VALUES `)
	for i, e := range entries {
		if i > 0 {
			b.WriteString(", ")
		}
		writeRow(&b, dialect, i*columns)
		args = append(args, e.id, e.lane, e.topic, e.key, e.size(), e.metadata, e.payload)
	}
	return rename(b.String(), prefix), args
}

func writeRow(b *strings.Builder, dialect txn.Dialect, before int) {
	switch dialect {
	case txn.MySQL:
		b.WriteString("(?, ?, ?, ?, ?, ?, ?, UTC_TIMESTAMP(6))")
	case txn.SQLite:
		b.WriteString("(?, ?, ?, ?, ?, ?, ?)")
	default:
		b.WriteByte('(')
		for c := 1; c <= columns; c++ {
			if c > 1 {
				b.WriteString(", ")
			}
			b.WriteByte('$')
			b.WriteString(strconv.Itoa(before + c))
		}
		b.WriteByte(')')
	}
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
			return insertError(dialect, prefix, err)
		}})
	}
	return stmts
}

func insertError(dialect txn.Dialect, prefix string, err error) error {
	switch {
	case err == nil:
		return nil
	case duplicate(dialect, err):
		return fmt.Errorf("%w: %w", ErrDuplicateMessage, quiet(err))
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
