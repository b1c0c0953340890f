package outbox

import (
	"context"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

// Lanes is the number of lanes of every outbox. It is part of the schema: a key's lane is
// FNV-1a(key) mod Lanes, for ever.
const Lanes = 64

// Store is an outbox as a forwarder sees it: who holds which lane, what waits in it, and how a message
// leaves it. The forwarder package is its user; outboxtest holds the rules that every Store keeps.
//
// Each method is one autocommit statement (or one short transaction where the database needs two), at
// READ COMMITTED, that waits at most about one second for a lock. One that is given up may go on in the database
// beside what its caller does next: none of them meets a deadlock with another. Times are the database's; durations
// are sent, never points in time. All methods are safe for concurrent use; but the holder of a lane
// calls Refuse, Hold, Lift and Park for it one after the other, because what one of them sees of the
// others while they run is not defined.
type Store interface {
	// Check says whether the outbox can be worked on, and if not, how to mend it. An error for which
	// IsSetup reports false is an outage: try again.
	Check(ctx context.Context) error

	// Join registers a replica with beat 0 and a lease from now.
	Join(ctx context.Context, replica string, lease time.Duration) error
	// Renew sets the replica's beat from beat to beat+1, its lease to lease from now, and the
	// destinations that it cannot reach to down. False means that the row is not there with that beat:
	// the replica holds nothing any more.
	Renew(ctx context.Context, replica string, beat int64, lease time.Duration, down []string) (bool, error)
	// Leave frees the replica's lanes as released and removes it.
	Leave(ctx context.Context, replica string) error
	// Sweep removes the replicas other than this one whose lease has ended, and reports how many.
	Sweep(ctx context.Context, replica string) (int, error)
	// Survey counts the replicas that live and the lanes that nobody holds.
	Survey(ctx context.Context) (Survey, error)
	// Claim takes up to n free lanes for a replica that is registered, each with its epoch one higher.
	// A lane whose last holder vanished without releasing it has its Crashes one higher.
	Claim(ctx context.Context, replica string, n int) ([]Grant, error)
	// Release frees the grants still held with their epoch.
	Release(ctx context.Context, grants []Grant) error
	// Calm sets the crash count of the grant to 0.
	Calm(ctx context.Context, g Grant) error

	// Topics lists the topics that have rows which are ready and are not paused, and the destinations
	// that are paused. It may be a moment late.
	Topics(ctx context.Context) (Topics, error)
	// Read returns rows that are ready, from the bottom of each lane upwards, in order of position. Old
	// rows that were made ready by hand, and not by this Store, may be missing for ten seconds; the holder
	// of a lane does all that makes its rows ready through one Store.
	Read(ctx context.Context, q Read) ([]Row, error)
	// Promote makes ready what has become due in the lanes of the grants still held: delayed messages,
	// refused messages whose back-off is over, and held rows that no stop holds any more. Next is the
	// time until the next one is due, 0 if there is none. One call makes a bounded number ready; if more
	// are due, Next is short. A call that finds nothing to do writes nothing.
	Promote(ctx context.Context, grants []Grant) (Promotion, error)
	// Stops lists the stopped keys of the lanes. A stop whose message is not in the outbox any more (a
	// holder settled it and died before it lifted the stop) is none.
	Stops(ctx context.Context, lanes []int) ([]Stop, error)

	// Settle deletes the rows named by position and id whose lane is held with the grant's epoch. Rows
	// that somebody else has locked are left, and may be settled later.
	Settle(ctx context.Context, grants []Grant, rows []Ref) (Settled, error)
	// Attempt counts attempt number attempt (2 and up) before it is made: compare-and-set from
	// attempt-1. False: the lane or the row is no longer as it was; do not publish.
	Attempt(ctx context.Context, g Grant, r Ref, attempt int) (bool, error)
	// Mark says that cancellable rows (Row.Cancellable) are about to be published: from then on it is too
	// late to cancel or replace them. It returns the positions that are marked now, by this call or
	// before it; a row that is not among them is gone, or locked by somebody who may be cancelling it, or
	// its lane is not held any more: do not publish it.
	Mark(ctx context.Context, grants []Grant, rows []Ref) ([]int64, error)
	// Refuse records a refused attempt: the row is not ready until f.RetryIn has passed and, if f.Stop,
	// its key is stopped for f.Destination, in one transaction under the epoch.
	Refuse(ctx context.Context, g Grant, f Refused) (bool, error)
	// Hold makes rows not ready that stand behind a stop of their key; rows whose key is not stopped in
	// the store stay as they are.
	Hold(ctx context.Context, g Grant, destination string, rows []Ref) (bool, error)
	// Lift makes the held rows of a key ready, from the bottom, in as many transactions as that takes, and removes the
	// stop in the last one: as long as any is held, the key is stopped.
	Lift(ctx context.Context, g Grant, destination, key string) (bool, error)
	// Park lifts the stop that a row caused, and moves the row to the dead messages in the last transaction of that.
	Park(ctx context.Context, g Grant, f Refused) (bool, error)
}

// Grant is one lane held under one epoch.
type Grant struct {
	Lane    int
	Epoch   int64
	Crashes int // holders that vanished in a row
}

// Survey is the state of the lanes at one moment.
type Survey struct {
	Replicas  int // whose lease has not ended
	FreeLanes int
	// Down counts, for each destination that one of these replicas cannot reach, how many cannot.
	Down map[string]int
}

// Topics is what there is to do at one moment.
type Topics struct {
	Ready []string
	// Paused are the destinations to which nothing is to be sent.
	Paused []string
}

// Read says what to read.
type Read struct {
	Lanes  []int
	Topics []string
	// Exclude are the positions in flight. BusyKeys are keys of which nothing more is wanted now.
	Exclude  []int64
	BusyKeys []string
	// MaxRows and MaxBytes bound the answer; one row comes even if it alone is larger than MaxBytes.
	MaxRows  int
	MaxBytes int
}

// Ref names a row: by position and id, so that a position that was handed out twice (after a
// crash that lost commits) never ends the wrong message.
type Ref struct {
	Pos int64
	ID  string
}

// Row is one waiting message. It belongs to who read it, with its metadata and payload.
type Row struct {
	Ref
	Lane     int
	Topic    string
	Key      string // "" = no key, no order
	Attempts int    // counted so far
	Size     int    // bytes of payload and metadata
	// Cancellable rows must be marked before they are published.
	Cancellable bool
	Metadata    message.Metadata
	Payload     []byte
	CreatedAt   time.Time
	// Err is set if the row cannot be decoded; it is to be parked.
	Err error
}

// Stop is a key that waits for its failing message.
type Stop struct {
	Lane        int
	Destination string
	Key         string
	Pos         int64 // of the message that failed
}

// Refused describes a refused attempt.
type Refused struct {
	Ref
	Destination string
	Key         string
	Attempt     int
	Reason      string // short code
	Error       string // bounded, no payload
	RetryIn     time.Duration
	Stop        bool
}

// Promotion is the answer of Promote.
type Promotion struct {
	Ready int
	Next  time.Duration

	overdue bool // confirmations
}

// Settled is the answer of Settle.
type Settled struct {
	// Lost are the lanes of the grants that are not held any more; nothing in them was deleted.
	Lost []int
	// Done are the positions that were deleted.
	Done []int64
	// Gone are the positions that were not there under that id.
	Gone []int64

	awaiting []int64 // positions of those that await confirmations from now on
}
