// Package dberr reads database errors without knowing the drivers: SQLSTATE through its method, the
// numbers of MySQL and SQLite by their fields' or methods' names.
package dberr

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"io"
	"net"
	"reflect"
	"strings"
)

// SQLState is the SQLSTATE of a server's error, "" if err is none. Both pgx and lib/pq have the method.
func SQLState(err error) string {
	var e interface{ SQLState() string }
	if errors.As(err, &e) {
		return e.SQLState()
	}
	return ""
}

// MySQL is the number of a MySQL or MariaDB server's error, 0 if err is none.
func MySQL(err error) int {
	return int(find(err, func(v reflect.Value) int64 {
		if v.Kind() != reflect.Struct || v.Type().Name() != "MySQLError" {
			return 0
		}
		if f := v.FieldByName("Number"); f.IsValid() && f.CanUint() {
			return int64(f.Uint())
		}
		return 0
	}))
}

// SQLite is the primary result code of a SQLite error, 0 if err is none. It knows modernc.org/sqlite
// (method Code) and mattn/go-sqlite3 (field Code).
func SQLite(err error) int {
	return int(find(err, func(v reflect.Value) int64 {
		if v.Kind() != reflect.Struct || !strings.Contains(v.Type().PkgPath(), "sqlite") {
			return 0
		}
		if f := v.FieldByName("Code"); f.IsValid() && f.CanInt() {
			return f.Int()
		}
		if v.CanAddr() {
			if e, ok := v.Addr().Interface().(interface{ Code() int }); ok {
				return int64(e.Code() & 0xff)
			}
		}
		return 0
	}))
}

// find asks read about each error in err's tree until one answers.
func find(err error, read func(reflect.Value) int64) int64 {
	if err == nil {
		return 0
	}
	if n := read(reflect.Indirect(reflect.ValueOf(err))); n != 0 {
		return n
	}
	switch e := err.(type) { //nolint:errorlint // it walks the tree itself
	case interface{ Unwrap() error }:
		return find(e.Unwrap(), read)
	case interface{ Unwrap() []error }:
		for _, err := range e.Unwrap() {
			if n := find(err, read); n != 0 {
				return n
			}
		}
	}
	return 0
}

// Lost reports whether err says that the connection is gone or not to be trusted any more.
func Lost(err error) bool {
	var timeout net.Error
	switch {
	case errors.Is(err, driver.ErrBadConn), errors.Is(err, sql.ErrConnDone), errors.Is(err, sql.ErrTxDone),
		errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed),
		errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded),
		errors.As(err, &timeout):
		return true
	}
	text := err.Error() // pgx and go-sql-driver say these without an error of their own that all versions share
	return strings.Contains(text, "conn closed") || strings.Contains(text, "invalid connection") ||
		strings.Contains(text, "closed pool")
}

// Effect is what a statement's error did to its transaction.
type Effect int

const (
	// Unharmed: the transaction goes on.
	Unharmed Effect = iota
	// Failed: it can only be rolled back, or go on from a savepoint.
	Failed
	// Gone: it is over.
	Gone
)

// After says what err, from a statement, did to its transaction.
func After(dialect string, err error) Effect {
	if state := SQLState(err); state != "" && dialect == "postgres" {
		if unsure(state) {
			return Gone
		}
		return Failed
	}
	switch MySQL(err) {
	case 0:
	case 1020, 1213, 1305, 1053, 1927, 2006, 2013, 4031:
		return Gone
	case 1205: // whether only the statement is gone depends on innodb_rollback_on_timeout
		return Failed
	default:
		return Unharmed
	}
	if SQLite(err) != 0 {
		return Unharmed
	}
	if Lost(err) {
		return Gone
	}
	return Unharmed
}

// unsure lists the states that a server sends about a connection that is ending: a backend that is
// shut down while it waits for a synchronous standby has committed.
func unsure(state string) bool {
	switch state {
	case "40003", "57P01", "57P02", "57P03", "57P04", "57P05", "25P03":
		return true
	}
	return strings.HasPrefix(state, "08")
}

// NotCommitted reports whether err, answered to COMMIT, proves that the transaction did not commit.
func NotCommitted(dialect string, err error) bool {
	switch dialect {
	case "postgres":
		state := SQLState(err)
		return state != "" && !unsure(state)
	case "mysql":
		switch MySQL(err) {
		case 1213, 3101, 1792, 1290:
			return true
		}
	case "sqlite":
		switch SQLite(err) {
		case 5, 13, 19: // busy, full, constraint
			return true
		}
	}
	return false
}

// Busy reports whether SQLite found another writer.
func Busy(err error) bool { return SQLite(err) == 5 }

// Retryable reports whether err is a serialization failure or a deadlock: the same transaction may
// succeed when run again.
func Retryable(err error) bool {
	switch SQLState(err) {
	case "40001", "40P01":
		return true
	}
	switch MySQL(err) {
	case 1213, 1205, 1020, 3101:
		return true
	}
	return SQLite(err) == 5
}
