package store

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// ErrNotFound: there is no such dead letter (any more).
var ErrNotFound = errors.New("store: no such dead letter")

// Dead keeps messages that were given up. Its methods are atomic and safe for concurrent use. Put and
// the others that read may be repeated after an error; a Decide whose answer was lost has taken effect if
// the letters are gone, and the audit says so.
type Dead interface {
	// Put stores a dead letter. A message that is dead already stays as it is. ID, At and Size are given
	// by the store.
	Put(ctx context.Context, l Letter) error

	// List returns up to limit letters that the filter matches, without payloads, oldest first,
	// beginning behind the one whose id is after. After 0 begins at the first. A letter that cannot be
	// read is among them, with Unreadable set.
	List(ctx context.Context, f Filter, after int64, limit int) ([]Letter, error)

	// Get returns one letter with its payload, or ErrNotFound. That it cannot be read is no error: see
	// Unreadable.
	Get(ctx context.Context, group string, id int64) (Letter, error)

	// Decide replays or discards letters of one group and writes one audit record for each, all or
	// none, and returns the ids of those that were still there.
	//
	// A replayed letter becomes a delayed message of its group that is due now, with no attempts and no
	// history. If the message is stored there already, that copy starts anew in its place. One that cannot be
	// read goes back with its bytes as they are.
	Decide(ctx context.Context, d Decision) (done []int64, err error)

	// Audit returns up to limit records of the group, oldest first, behind the one whose id is after.
	Audit(ctx context.Context, group string, after int64, limit int) ([]Audit, error)
}

// Letter is a message that was given up, as it came.
type Letter struct {
	Entry
	// ID names this death of the message: if it is replayed and dies again, that is another letter.
	// Later letters of a group have higher ids.
	ID     int64
	At     time.Time
	Reason string // a code
	Error  string // bounded text, one line
	Size   int    // of the payload
	// Unreadable, if not nil, is why the store could not read all of the message: it was damaged, or a later
	// version wrote it. Of Entry only what is known is set; the payload is complete.
	Unreadable error
}

// ReasonUnreadable is the reason of a letter that Take set aside because it could not be read.
const ReasonUnreadable = "unreadable"

// Filter chooses letters. Group is required; what is empty matches everything.
type Filter struct {
	Group     string
	Reason    string
	Topic     string
	MessageID string
	// Since and Until bound the time of death: from Since on, before Until.
	Since, Until time.Time
}

// Match reports whether the filter chooses the letter.
func (f Filter) Match(l Letter) bool {
	return l.Group == f.Group &&
		(f.Reason == "" || f.Reason == l.Reason) &&
		(f.Topic == "" || f.Topic == l.Topic) &&
		(f.MessageID == "" || f.MessageID == l.MessageID) &&
		(f.Since.IsZero() || !l.At.Before(f.Since)) &&
		(f.Until.IsZero() || l.At.Before(f.Until))
}

// Action is what is decided about a dead letter.
type Action string

const (
	// Replayed: the letter goes back to its handler.
	Replayed Action = "replay"
	// Discarded: the letter is removed for good.
	Discarded Action = "discard"
)

// Decision is what Decide does.
type Decision struct {
	Group   string
	Action  Action
	Letters []int64
	// Edited, with Replayed and a single letter, is the message that takes the letter's place. Its group
	// is that of the letter.
	Edited *Entry
	// Who decided, and why.
	Who, Why string
}

// Check reports all that is wrong with the decision. It is for implementations of Store.
func (d Decision) Check() error {
	errs := []error{CheckGroup(d.Group), checkAuthor(d.Who, d.Why)}
	if d.Action != Replayed && d.Action != Discarded {
		errs = append(errs, fmt.Errorf("store: decision %q is neither replay nor discard", d.Action))
	}
	if d.Edited != nil {
		if d.Action != Replayed || len(d.Letters) != 1 || d.Edited.Group != d.Group {
			errs = append(errs, errors.New("store: an edited message replaces one letter of its group that is replayed"))
		}
		errs = append(errs, d.Edited.Check())
	}
	return errors.Join(errs...)
}

func checkAuthor(who, why string) error {
	if who == "" || why == "" {
		return errors.New("store: a decision needs who decided, and why")
	}
	if len(who) > 200 || len(why) > 1000 {
		return errors.New("store: who is at most 200 bytes, why at most 1000")
	}
	return nil
}

// Audit is the record of a decision about one letter.
type Audit struct {
	ID        int64
	At        time.Time
	Action    Action
	Group     string
	Letter    int64
	MessageID string
	NewID     string // of the edited message that took its place
	Who, Why  string
}
