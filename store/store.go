package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Store keeps delayed messages and dead letters.
type Store interface {
	Delayed
	Dead
}

// ErrSetup is wrapped by the error of a Check that says what to change. Any other is an outage.
var ErrSetup = errors.New("the store is not set up")

// Delayed keeps messages that come back to their handler. At any time a stored message is waiting for
// its time, waiting for an earlier message of its order key, or held by the owner who took it.
//
// All methods are atomic and safe for concurrent use, by any number of processes where the store is
// shared. Times are measured by the store's clock. Every method may be repeated after an error: a call
// whose answer was lost changes nothing when it is made again, but for Take, whose messages are
// due again when the lease ends.
type Delayed interface {
	// Check reports whether the store can be relied on. An error that wraps ErrSetup says what to change.
	Check(ctx context.Context) error

	// Admit says what to do with a message that came from the broker. If the message itself is stored,
	// the answer is Stored; if it is a dead letter of the group, Buried. If an earlier one of its order
	// key is stored, the message is stored behind that one, with Attempts 0, and the answer is Behind.
	// Otherwise it is Open, and nothing is changed.
	Admit(ctx context.Context, e Entry) (Admission, error)

	// Defer stores the message, to be due after the delay. If it is stored already, that copy stays as
	// it is, but for its attempts, which are raised to e.Attempts if they are fewer.
	Defer(ctx context.Context, e Entry, delay time.Duration) error

	// Take leases up to Limit messages of the group that are due to the owner, longest due first. Of an
	// order key only the message stored first can be taken, while no other is held. Next is the
	// time until something more is due, or negative if nothing is known to be. It is 0 also when a call
	// left out what another was looking at in that moment.
	//
	// A message that cannot be read, because it was damaged or a later version wrote it, is taken from
	// among the others and becomes a dead letter with ReasonUnreadable, its bytes as they are; the next one
	// of its order key becomes due.
	Take(ctx context.Context, t Take) (taken []Entry, next time.Duration, err error)

	// Renew lets the lease end lease from now. False: the owner holds the message no more.
	Renew(ctx context.Context, e Entry, owner string, lease time.Duration) (held bool, err error)

	// Begin records that attempt number attempt begins, before it does. A number that is not above the
	// recorded one changes nothing. False: the owner holds the message no more.
	Begin(ctx context.Context, e Entry, owner string, attempt int) (held bool, err error)

	// Return gives the message back, to be due after the delay, and sets its attempts, returns and history
	// to those of e. It keeps its place in its order key. False: the owner holds the message no more.
	Return(ctx context.Context, e Entry, owner string, delay time.Duration) (held bool, err error)

	// Forget removes the message. In the same step the next one of its order key, if there is one,
	// becomes due; if there is none, the key is open. False: the owner holds the message no more.
	Forget(ctx context.Context, e Entry, owner string) (held bool, err error)

	// Stats counts the group's messages.
	Stats(ctx context.Context, group string) (Stats, error)
}

// Entry is a message as it is stored.
type Entry struct {
	// Group is the handler for which it is stored. With MessageID it names the entry.
	Group     string
	MessageID string
	// Topic is where the message came from.
	Topic string
	// OrderKey is what order is kept by. "" = none.
	OrderKey string
	Metadata map[string]string
	Payload  []byte
	// Attempts is how often the handler was called, in all processes.
	Attempts int
	// Returns is how often it was put aside after an attempt.
	Returns int
	// History is how the latest attempts ended.
	History []Failure
}

// Failure is how an attempt ended.
type Failure struct {
	Attempt int       `json:"attempt"`
	At      time.Time `json:"at"`
	Reason  string    `json:"reason"`
	Error   string    `json:"error"` // bounded text
}

// Admission is the answer of Admit.
type Admission int

const (
	// Open: the message is not stored, nor dead, nor is an earlier one of its order key stored.
	Open Admission = iota
	// Stored: the message is stored and will come from there.
	Stored
	// Behind: the message was stored now, behind an earlier one of its order key.
	Behind
	// Buried: the message was given up, and is a dead letter.
	Buried
)

// Take is what Take asks for.
type Take struct {
	Group string
	// Owner is a random name, a new one for each call.
	Owner string
	Limit int
	Lease time.Duration
	// OnUnreadable is called, if set, for each message that could not be read, before Take returns. The id is
	// what is known of it, and err says also if it could not be made a dead letter: then it is looked at again when the
	// lease ends.
	OnUnreadable func(messageID string, err error)
}

// Unreadable calls OnUnreadable. It is for implementations of Store.
func (t Take) Unreadable(messageID string, err error) {
	if t.OnUnreadable != nil {
		t.OnUnreadable(messageID, err)
	}
}

// Check reports all that is wrong with the request. It is for implementations of Store.
func (t Take) Check() error {
	errs := []error{CheckGroup(t.Group)}
	if t.Owner == "" {
		errs = append(errs, errors.New("store: take without an owner"))
	}
	if t.Limit < 1 {
		errs = append(errs, fmt.Errorf("store: take of %d messages", t.Limit))
	}
	if t.Lease < time.Millisecond {
		errs = append(errs, fmt.Errorf("store: lease of %s is less than a millisecond", t.Lease))
	}
	return errors.Join(errs...)
}

// Stats are counts of messages.
type Stats struct {
	Stored  int // all that are delayed
	Due     int // of these, wait only for somebody to take them
	Held    int // are held by an owner whose lease has not ended
	Blocked int // wait for an earlier one of their order key
	Dead    int // dead letters, which are not among Stored
}

// MaxGroup is the longest name of a group, in bytes.
const MaxGroup = 128

// CheckGroup reports what is wrong with the name of a group. It is for implementations of Store.
func CheckGroup(group string) error {
	switch {
	case group == "":
		return errors.New("store: the group is empty")
	case len(group) > MaxGroup || !utf8.ValidString(group) || strings.ContainsFunc(group, unicode.IsControl):
		return fmt.Errorf("store: a group is printable text of at most %d bytes", MaxGroup)
	}
	return nil
}

// Check reports what is wrong with the entry. It is for implementations of Store.
func (e Entry) Check() error {
	if e.MessageID == "" {
		return errors.Join(CheckGroup(e.Group), errors.New("store: the message has no id"))
	}
	return CheckGroup(e.Group)
}
