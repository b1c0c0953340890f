package dedup

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Store remembers who is handling a message and which messages are done.
//
// The record of a key is absent, claimed by an owner until its lease ends, released, or done. Each
// method is one atomic step on one record, measured by the store's own clock. All methods are safe for
// concurrent use, by any number of processes where the store is shared. Every method may be repeated
// after an error: a call whose answer was lost changes nothing when it is made again.
//
// The rules that every Store keeps are in deduptest.
type Store interface {
	// Check reports whether the store can be relied on, and if not, what to change. It may be called
	// at any time, as often as wanted.
	Check(ctx context.Context) error

	// Claim asks for the right to handle the message. At most one owner at a time is told Claimed.
	Claim(ctx context.Context, key Key, req Request) (Answer, error)

	// Renew lets the owner's lease end lease from now. False means that the owner holds nothing any
	// more: its lease ended and another took over, or the record is gone.
	Renew(ctx context.Context, key Key, owner string, lease time.Duration) (bool, error)

	// Done records that the message has been handled, with a result of at most MaxResult bytes, and
	// keeps the record for ttl. It succeeds after the end of the lease too, as long as nobody took
	// over. Doing it twice is doing it once.
	Done(ctx context.Context, key Key, owner string, result []byte, ttl time.Duration) (Mark, error)

	// Release gives the claim back without having handled the message; the next Claim succeeds at
	// once. The count of attempts is kept, or set to zero if fresh. It does nothing when the owner
	// does not hold the claim.
	Release(ctx context.Context, key Key, owner string, fresh bool) error
}

// MaxResult is the largest result that Done takes, in bytes.
const MaxResult = 64 << 10

// Key names a record: one message as one consumer handles it. Two consumers of one message have two
// records.
type Key struct {
	Consumer  string
	MessageID string
}

// Check reports an error if one half of the key is empty.
func (k Key) Check() error {
	switch {
	case k.Consumer == "":
		return errors.New("dedup: key without a consumer name")
	case k.MessageID == "":
		return errors.New("dedup: key without a message id")
	}
	return nil
}

// Request is what a Claim asks for.
type Request struct {
	// Owner is a random name that nobody else uses: a new one for each delivery. A claim by the owner
	// who holds it already is answered Claimed again, so that a lost answer does no harm.
	Owner string
	// Lease is how long the claim holds unless it is renewed. At least one millisecond.
	Lease time.Duration
	// TTL is how long the record is remembered from now. At least the lease.
	TTL time.Duration
	// Digest is a fingerprint of the message's content. The first one stays; a claim with another is
	// answered Reused. Empty = do not compare.
	Digest string
}

// Check reports all that is wrong with the request.
func (r Request) Check() error {
	var errs []error
	if r.Owner == "" {
		errs = append(errs, errors.New("dedup: claim without an owner"))
	}
	if r.Lease < time.Millisecond {
		errs = append(errs, fmt.Errorf("dedup: lease of %s is less than a millisecond", r.Lease))
	}
	if r.TTL < r.Lease {
		errs = append(errs, fmt.Errorf("dedup: record kept for %s, less than the lease of %s", r.TTL, r.Lease))
	}
	return errors.Join(errs...)
}

// Verdict is the answer to a claim.
type Verdict int

const (
	// Claimed: the caller is the one to handle the message.
	Claimed Verdict = iota + 1
	// Busy: somebody else is handling it.
	Busy
	// Handled: the message is done.
	Handled
	// Reused: the record belongs to a message with the same id and another content.
	Reused
)

// Answer is a verdict with what belongs to it.
type Answer struct {
	Verdict Verdict
	// Fence (if Claimed) is higher than that of every earlier claim of this key that the store
	// remembers. A resource that refuses a lower fence than it has seen is safe from a late owner.
	Fence int64
	// Attempts (if Claimed) counts the claims of this key, this one included.
	Attempts int
	// Remaining (if Busy) is the time until the other's lease ends, if it is not renewed.
	Remaining time.Duration
	// Result (if Handled) is what Done was given.
	Result []byte
}

// Mark is the answer to Done.
type Mark int

const (
	// Marked: the record says done.
	Marked Mark = iota + 1
	// Recreated: the record says done, but it had been forgotten meanwhile (evicted, or lost in a
	// failover), so the message may have been handled by another, too.
	Recreated
	// Lost: another owner took over. The record is unchanged.
	Lost
)

// ErrResultTooLarge is returned by Done for a result of more than MaxResult bytes.
var ErrResultTooLarge = errors.New("dedup: result too large")

// CheckDone reports all that is wrong with the arguments of Done. It is for implementations of Store.
func CheckDone(owner string, result []byte, ttl time.Duration) error {
	var errs []error
	if owner == "" {
		errs = append(errs, errors.New("dedup: done without an owner"))
	}
	if len(result) > MaxResult {
		errs = append(errs, fmt.Errorf("%w: %d bytes, at most %d", ErrResultTooLarge, len(result), MaxResult))
	}
	if ttl < time.Millisecond {
		errs = append(errs, fmt.Errorf("dedup: record kept for %s, less than a millisecond", ttl))
	}
	return errors.Join(errs...)
}
