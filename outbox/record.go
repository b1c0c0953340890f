package outbox

import (
	"errors"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

// ErrNotFound means that no message, or nothing of the kind that was asked for, is known under an id.
var ErrNotFound = errors.New("outbox: not found")

// State is where a message is in its life.
type State string

const (
	// StateWaiting messages are in the outbox: to be sent now or later, or behind one that fails.
	StateWaiting State = "waiting"
	// StateSent messages are with the broker; they are kept, or wait for their confirmations.
	StateSent State = "sent"
	// StateDone messages were confirmed by all who had to.
	StateDone State = "done"
	// StateDead messages were set aside, with the reason.
	StateDead State = "dead"
)

// Record is a message as operators see it. Lists leave Metadata and Payload out.
type Record struct {
	// Seq numbers the records of a state in the order in which they came into it; it is the position of a
	// waiting one.
	Seq int64
	Ref
	State    State
	Lane     int
	Topic    string
	Key      string
	Attempts int
	Size     int
	After    After
	// CreatedAt is when it was published, At when it came into its state, by the database's clock.
	CreatedAt time.Time
	At        time.Time
	// Due is when a delayed or refused message is tried next, or a confirmation is overdue; or zero.
	Due      time.Time
	Schedule string
	// Held is the destination whose stop of the key it stands behind.
	Held string
	// Destination, Reason and Error say why a message is dead.
	Destination string
	Reason      string
	Error       string

	Metadata message.Metadata
	Payload  []byte
}

// Filter chooses messages of one state. What is empty does not count.
type Filter struct {
	State State // default StateDead
	Topic string
	Key   string
	// IDs, if not nil, are the only messages; at most 1000.
	IDs []string
	// Reason and Destination are only for dead messages.
	Reason      string
	Destination string
	// Since and Until bound Record.At: from Since on, and before Until.
	Since, Until time.Time
}

// Query asks for a page of messages.
type Query struct {
	Filter
	// Newest begins with those that came into the state last.
	Newest bool
	// Limit is the size of a page. Default 100, at most 1000.
	Limit int
	// Cursor is Page.Next of the page before.
	Cursor int64
}

// Page is an answer to a Query.
type Page struct {
	Records []Record
	// Next is the Cursor of the next page, 0 if this is the last one.
	Next int64
}

// Event is a line of a message's history.
type Event struct {
	At time.Time
	// What: refused, parked, cancelled, replayed, discarded, edited (into the message named by Reason),
	// edit (of the message named by Reason).
	What        string
	Attempt     int
	Destination string
	Reason      string
	Error       string
	Who         string
}

// Confirmed is what a consumer group said about a message.
type Confirmed struct {
	Group   string
	Outcome string
	// Sending is the number of the sending that it answers, from 1; 0 if the consumer does not tell.
	Sending int
	Error   string
	At      time.Time
}

// Trace is all that is known about the messages of one id.
type Trace struct {
	// Records are where it is now, whole: none if it was sent and deleted, cancelled or discarded. There
	// may be several if the id was used again.
	Records []Record
	// History is what happened to it, oldest first: of many refusals the first 20, and what followed.
	// A message that went out at the first attempt has none.
	History []Event
	// Confirmations are what consumer groups said.
	Confirmations []Confirmed
}

// Event names of the history.
const (
	eventRefused   = "refused"
	eventParked    = "parked"
	eventCancelled = "cancelled"
	eventReplayed  = "replayed"
	eventDiscarded = "discarded"
	eventEdited    = "edited"
	eventEdit      = "edit"
)
