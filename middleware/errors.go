package middleware

import (
	"errors"
	"time"

	"github.com/millrace-go/millrace/internal/delivery"
)

var (
	// ErrInProgress: another delivery of the message is being handled. This one is nacked.
	ErrInProgress = errors.New("middleware: another delivery of this message is in progress")

	// ErrLeaseLost: the claim ended while the handler ran, and another may have taken over. It is the
	// cause of the handler's context, and the error of the delivery, which is nacked.
	ErrLeaseLost = errors.New("middleware: the claim was lost while the handler ran")

	// ErrTooManyClaims: the message was begun too often without ever being done, in all processes
	// together; it may be the one that ends them. It is permanent, reason "too_many_claims".
	ErrTooManyClaims = errors.New("middleware: the message was begun too often without an end")

	// ErrKeyReused: a message with the same id had another payload. It is permanent, reason
	// "idempotency_key_reused".
	ErrKeyReused = errors.New("middleware: another message has the same id")

	// ErrStoreUnavailable: it cannot be found out whether the message was handled. It is nacked.
	ErrStoreUnavailable = errors.New("middleware: the dedup store cannot be asked")

	// ErrNoConsumer: no consumer name is configured and the message did not come through a router.
	ErrNoConsumer = errors.New("middleware: no consumer name: set Consumer, or add the middleware to a Watermill router, whose handler names it uses")

	// ErrSharedConsumer: two handlers of one topic use one configured consumer name, so that only one
	// of them would see each message. Give each its own Idempotent, or leave Consumer empty.
	ErrSharedConsumer = errors.New("middleware: two handlers of one topic share a consumer name: leave Consumer empty, or give each handler an Idempotent of its own")

	// ErrNoMessageID: the message has no id to know it by. It is permanent, reason "no_message_id".
	ErrNoMessageID = errors.New("middleware: the message has no id")

	// ErrOutputTooLarge: the messages that the handler returned do not fit into the record. It is
	// permanent, reason "output_too_large".
	ErrOutputTooLarge = errors.New("middleware: the messages returned by the handler are too large to be remembered")

	// ErrSwallowed: a middleware in between turned an error into nil without storing the message.
	ErrSwallowed = delivery.ErrSwallowed
)

// Permanent marks an error that no further attempt will change. Retry gives up at once, PoisonQueue
// takes the message. Permanent(nil) is nil.
func Permanent(err error) error {
	if err == nil {
		return nil
	}
	return &permanentError{err}
}

// IsPermanent reports whether err was marked by Permanent.
func IsPermanent(err error) bool {
	var p *permanentError
	return errors.As(err, &p)
}

// RetryAfter marks an error that wants another attempt, but not before d has passed.
// RetryAfter(nil, d) is nil.
func RetryAfter(err error, d time.Duration) error {
	if err == nil {
		return nil
	}
	return &delayedError{err, d}
}

// NotYet marks an error that is no verdict on the message: whoever runs now cannot handle it, and another
// may, for instance a newer version that is being deployed. No attempt is counted. With DelayedRetry
// the message is stored and comes again after d, or, if that is 0, after the first delay; without, it is
// nacked. NotYet(nil, d) is nil.
func NotYet(err error, d time.Duration) error {
	if err == nil {
		return nil
	}
	return &postponedError{delayedError: delayedError{err, d}, notYet: true}
}

// Delay returns what RetryAfter asked for, or 0.
func Delay(err error) time.Duration {
	var d delivery.Delayer
	if errors.As(err, &d) {
		return d.RetryAfter()
	}
	return 0
}

// WithReason gives an error a short code (such as "unknown_customer") that PoisonQueue stores with the
// message. WithReason(nil, code) is nil.
func WithReason(err error, code string) error {
	if err == nil {
		return nil
	}
	return &reasonError{err, code}
}

// Reason returns the code given by WithReason, "permanent" for a permanent error without one, else
// "failed".
func Reason(err error) string {
	var r *reasonError
	switch {
	case errors.As(err, &r):
		return r.code
	case IsPermanent(err):
		return "permanent"
	}
	return "failed"
}

type permanentError struct{ error }

func (e *permanentError) Unwrap() error { return e.error }

type delayedError struct {
	error
	after time.Duration
}

func (e *delayedError) Unwrap() error             { return e.error }
func (e *delayedError) RetryAfter() time.Duration { return e.after }

type reasonError struct {
	error
	code string
}

func (e *reasonError) Unwrap() error { return e.error }

// hopeless is an error of the message itself.
func hopeless(err error, code string) error { return Permanent(WithReason(err, code)) }

// postponedError is an error that is not the message's fault and no attempt at handling it: the
// message is nacked and comes back, however often that happens.
type postponedError struct {
	delayedError
	notYet bool // a message that came from a broker may be put aside
}

func postponed(err error, after time.Duration) error {
	return &postponedError{delayedError: delayedError{err, after}}
}

func isPostponed(err error) bool {
	var p *postponedError
	return errors.As(err, &p)
}

func isNotYet(err error) bool {
	var p *postponedError
	return errors.As(err, &p) && p.notYet
}
