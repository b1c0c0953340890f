package outbox

import (
	"errors"
	"fmt"
	"strings"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/internal/dberr"
	"github.com/millrace-go/millrace/internal/txn"
)

var (
	// ErrNoTransaction means that Publish was called outside a transaction of the outbox's database.
	// It is millrace.ErrNoTransaction.
	ErrNoTransaction = millrace.ErrNoTransaction
	// ErrDuplicateMessage means that a message with the same id waits already, in the table or in the
	// same transaction. Where the database found it, the whole transaction has failed.
	ErrDuplicateMessage = errors.New("outbox: a message with this id is waiting already")
	// ErrInvalidMessage means that a message or its topic cannot be stored. Nothing was published.
	ErrInvalidMessage = errors.New("outbox: invalid message")
)

// IsSetup reports whether an error of Check, or of a Store, says that something must be set up or
// granted: it stays until somebody does so. Other errors of these are outages.
func IsSetup(err error) bool {
	var s *setupError
	return errors.As(err, &s) || needsSetup(err)
}

// setupError says what is wrong and what mends it.
type setupError struct {
	what, remedy string
	cause        error
}

func (e *setupError) Error() string {
	text := "outbox: " + e.what
	if e.cause != nil {
		text += ": " + e.cause.Error()
	}
	return text + ": " + e.remedy
}

func (e *setupError) Unwrap() error { return e.cause }

// needsSetup knows the errors of databases that no waiting mends.
func needsSetup(err error) bool {
	switch state := dberr.SQLState(err); {
	case strings.HasPrefix(state, "28"), // credentials
		strings.HasPrefix(state, "3D"), strings.HasPrefix(state, "3F"), // no such database, schema
		strings.HasPrefix(state, "42"): // missing table or column, privileges
		return true
	}
	switch dberr.MySQL(err) {
	case 1044, 1045, 1049, 1054, 1142, 1143, 1146, 1227, 1370, 1698:
		return true
	}
	switch dberr.SQLite(err) {
	case 1, 8, 14, 23, 26: // SQL error, read-only, cannot open, not authorized, not a database
		return true
	}
	return false
}

// explain gives err the words of the outbox, without what the database may have quoted of a row.
func explain(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("outbox: %s: %w", what, quiet(err))
}

// quiet hides the text of constraint and data errors, in which databases quote rows.
func quiet(err error) error {
	if err == nil || !quotesRow(err) {
		return err
	}
	return &quietError{err}
}

func quotesRow(err error) bool {
	state := dberr.SQLState(err)
	if strings.HasPrefix(state, "22") || strings.HasPrefix(state, "23") {
		return true
	}
	switch dberr.MySQL(err) {
	case 1062, 1264, 1265, 1292, 1366, 1406, 3819, 4025:
		return true
	}
	return false
}

// quietError is a database's error without its text.
type quietError struct{ cause error }

func (e *quietError) Error() string {
	if state := dberr.SQLState(e.cause); state != "" {
		return "the database refused the row (SQLSTATE " + state + ")"
	}
	return fmt.Sprintf("the database refused the row (error %d)", dberr.MySQL(e.cause))
}

// Is lets errors.Is and SQLState see what it was; Unwrap does not, because who unwraps prints.
func (e *quietError) Is(target error) bool { return errors.Is(e.cause, target) }

// SQLState is the state of the hidden error.
func (e *quietError) SQLState() string { return dberr.SQLState(e.cause) }

// duplicate reports whether err is the violation of a unique key.
func duplicate(dialect txn.Dialect, err error) bool {
	switch dialect {
	case txn.Postgres:
		return dberr.SQLState(err) == "23505"
	case txn.MySQL:
		return dberr.MySQL(err) == 1062
	default:
		return dberr.SQLite(err) == 19 && strings.Contains(err.Error(), "UNIQUE")
	}
}
