package half

import (
	"errors"
	"time"
)

// State is where a half message stands.
type State string

const (
	// Prepared is stored and undecided.
	Prepared State = "prepared"
	// Parked had all its checks without a definite answer. Commit, Rollback and Resume are possible.
	Parked State = "parked"
	// Committed has been given to the outbox.
	Committed State = "committed"
	// Ended is not sent. One that a Checker ended still has its content, and a Commit revives it.
	Ended State = "ended"
)

// Info is what is known of a half message.
type Info struct {
	ID         string
	Topic      string
	State      State
	Reason     string // why it ended
	Witness    string // the database that holds its witness; "" if none
	Checks     int    // without a definite answer
	LastError  string // of the last such check
	PreparedAt time.Time
	DecidedAt  time.Time // zero while undecided
}

var (
	// ErrNotFound: there is no half message with this id; a decided one is forgotten after
	// Config.Retention.
	ErrNotFound = errors.New("half: no such message")
	// ErrCommitted: it has been let go, and cannot be rolled back.
	ErrCommitted = errors.New("half: the message has been committed")
	// ErrRolledBack: it has been dropped for good. The witness of its local transaction is refused with
	// this error.
	ErrRolledBack = errors.New("half: the message has been rolled back")
	// ErrTooLate: the local transaction came to its witness later than Config.MaxAge after Prepare.
	ErrTooLate = errors.New("half: the local transaction is too late")
	// ErrConflict: another message was prepared under the same id.
	ErrConflict = errors.New("half: another message has this id")
	// ErrNoChecker: nobody could check the message back: neither a witness nor a checker is configured.
	ErrNoChecker = errors.New("half: nobody can check this message back: configure a checker for its topic, or use a witness")
)

// The reasons of ended messages.
const (
	reasonRolledBack = "rolled back"            // by the producer's own word
	reasonTombstone  = "rolled back: tombstone" // the local transaction can never commit
	reasonChecker    = "rolled back: checker"   // the business's promise; may be revived
)
