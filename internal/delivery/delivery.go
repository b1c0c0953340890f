// Package delivery is the record of one delivery of a message: what the middlewares that it passes
// through tell each other about how it ended, and what they tell the subscriber.
//
// A nil error alone does not say that a message took effect. An inner middleware may have put the
// message aside, or swallowed an error; an outer one that takes this for success would drop the
// message for good when it comes back.
package delivery

import (
	"context"
	"crypto/rand"
	"errors"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

// Outcome is how a delivery ended.
type Outcome int

const (
	// Open: nobody has said so far.
	Open Outcome = iota
	// Done: the handler succeeded, now or in an earlier delivery.
	Done
	// Deferred: the message is stored and comes back to this handler.
	Deferred
	// Poisoned: the message is stored among the dead.
	Poisoned
	// Failed: the handler or a middleware returned an error.
	Failed
)

// ErrSwallowed says that a middleware turned an error into nil without having stored the message.
var ErrSwallowed = errors.New("middleware: an inner middleware dropped an error without storing the message; the message is not acknowledged")

// Record belongs to one delivery. It is safe for concurrent use, though one goroutine is the rule.
type Record struct {
	id, handler string

	mu       sync.Mutex
	outcome  Outcome
	owner    string
	attempts int
	atEnd    []func(Outcome)
	ended    bool
}

type recordKey struct{}

// Run calls next with the record of msg's delivery. The outermost caller makes the record; when its
// next returns or panics, the functions left with AtEnd run, and msg has its context back.
func Run(msg *message.Message, next func(*Record) ([]*message.Message, error)) (out []*message.Message, err error) {
	ctx := msg.Context()
	handler := message.HandlerNameFromCtx(ctx)
	// A message may carry the context of the message that it was made from, and with it a record
	// which is not its own.
	if r, ok := ctx.Value(recordKey{}).(*Record); ok && r.id == msg.UUID && r.handler == handler && !r.hasEnded() {
		r.Set(Open) // nobody further in has been called yet, in this attempt
		return next(r)
	}
	r := &Record{id: msg.UUID, handler: handler, owner: rand.Text()}
	msg.SetContext(context.WithValue(ctx, recordKey{}, r))
	returned := false
	defer func() {
		if !returned || err != nil {
			r.Set(Failed)
		}
		r.end()
		msg.SetContext(withNackDelay(ctx, err))
	}()
	out, err = next(r)
	returned = true
	return out, err
}

// Owner is a random name of this delivery.
func (r *Record) Owner() string { return r.owner }

// Set says how the delivery ended. A middleware that calls what is within it again sets it to Open before.
func (r *Record) Set(o Outcome) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.outcome = o
}

// Outcome is how the delivery ended, so far.
func (r *Record) Outcome() Outcome {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.outcome
}

// SetAttempts says how often handling was begun.
func (r *Record) SetAttempts(n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.attempts = n
}

// Attempts is how often handling was begun, or 0 if nobody counted.
func (r *Record) Attempts() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.attempts
}

// Judge is called by each middleware with the error that came from within. It records the outcome if
// nobody inside has, and returns the error to go on with: ErrSwallowed if there is none though
// somebody inside has seen one.
func (r *Record) Judge(err error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case err != nil:
		r.outcome = Failed
	case r.outcome == Open:
		r.outcome = Done
	case r.outcome == Failed:
		return ErrSwallowed
	}
	return err
}

// AtEnd has f called with the final outcome when the delivery ends.
func (r *Record) AtEnd(f func(Outcome)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.atEnd = append(r.atEnd, f)
}

func (r *Record) end() {
	r.mu.Lock()
	outcome, fs := r.outcome, r.atEnd
	r.ended = true
	r.mu.Unlock()
	for i := len(fs) - 1; i >= 0; i-- {
		fs[i](outcome)
	}
}

func (r *Record) hasEnded() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ended
}

type nackDelayKey struct{}

// Delayer is an error that says how long to wait before the message is delivered again.
type Delayer interface {
	error
	RetryAfter() time.Duration
}

func withNackDelay(ctx context.Context, err error) context.Context {
	var d Delayer
	if !errors.As(err, &d) || d.RetryAfter() <= 0 {
		return ctx
	}
	return context.WithValue(ctx, nackDelayKey{}, d.RetryAfter())
}

// NackDelay is the time that a subscriber should wait before it delivers a message again that has been
// nacked, or 0 if the middlewares have no opinion. Call it after the message's Nacked is closed.
func NackDelay(msg *message.Message) time.Duration {
	d, _ := msg.Context().Value(nackDelayKey{}).(time.Duration)
	return d
}
