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
	calls    int
	count    Counter
	history  []Failure
	original *message.Message
	orderKey *string
	refusal  error
	atEnd    []func(Outcome)
	ended    bool

	within    func(context.Context) error
	committed bool
}

type recordKey struct{}

// Run calls next with the record of msg's delivery. The outermost caller makes the record; when its
// next returns or panics, the functions left with AtEnd run, and msg has its context back.
func Run(msg *message.Message, next func(*Record) ([]*message.Message, error)) (out []*message.Message, err error) {
	ctx := msg.Context()
	if r := of(ctx, msg); r != nil {
		r.Set(Open) // nobody further in has been called yet, in this attempt
		return next(r)
	}
	r := &Record{id: msg.UUID, handler: message.HandlerNameFromCtx(ctx), owner: rand.Text()}
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

// Counter counts the calls of the handler where more deliveries than this one count. It is asked before each
// call, and answers with the number of the attempt, and whether it is the last one.
type Counter func(ctx context.Context) (attempt int, last bool, err error)

// ErrElsewhere is the answer of a Counter that found the message in other hands. The handler is not to be
// called, and the outcome is set.
var ErrElsewhere = errors.New("middleware: the message is stored, and comes from there")

// CountBy has c asked by Begin from now on; nil ends that.
func (r *Record) CountBy(c Counter) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.count = c
}

// Counted reports whether more deliveries than this one are counted.
func (r *Record) Counted() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.count != nil
}

// Begin is called before each call of the handler, by whoever calls it again.
func (r *Record) Begin(ctx context.Context) (attempt int, last bool, err error) {
	r.mu.Lock()
	count := r.count
	r.mu.Unlock()
	if count == nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.calls++
		return r.calls, false, nil
	}
	attempt, last, err = count(ctx)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls = max(r.calls, attempt)
	return attempt, last, err
}

// Made says that as many attempts have been made as is known of.
func (r *Record) Made(n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls = max(r.calls, n)
}

// Calls is the number of the latest attempt, or 0 if nobody counted.
func (r *Record) Calls() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.calls
}

// Failure is how an attempt ended.
type Failure struct {
	Attempt int
	At      time.Time
	Reason  string
	Error   string
}

// maxHistory bounds what travels with a message.
const maxHistory = 20

// Note adds a failure to the history of the message, unless that attempt is there already.
func (r *Record) Note(fs ...Failure) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, f := range fs {
		if n := len(r.history); n > 0 && r.history[n-1].Attempt >= f.Attempt {
			continue
		}
		r.history = append(r.history, f)
	}
	if n := len(r.history); n > maxHistory {
		r.history = append([]Failure(nil), r.history[n-maxHistory:]...)
	}
}

// History is how the latest attempts ended, in all deliveries that are known of.
func (r *Record) History() []Failure {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Failure(nil), r.history...)
}

// Original is a copy of the message as it came to the first who asked: those further in may write into it.
func (r *Record) Original(msg *message.Message) *message.Message {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.original == nil {
		r.original = message.NewMessage(msg.UUID, append(message.Payload{}, msg.Payload...))
		for name, value := range msg.Metadata {
			r.original.Metadata[name] = value
		}
	}
	return r.original
}

// SetOrderKey says by which key order is kept, "" = none.
func (r *Record) SetOrderKey(key string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.orderKey = &key
}

// OrderKey is the key by which order is kept, or otherwise if nobody has said.
func (r *Record) OrderKey(otherwise string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.orderKey == nil {
		return otherwise
	}
	return *r.orderKey
}

// Refuse has the innermost middleware return err in place of calling the handler: those between may
// know that the message is done.
func (r *Record) Refuse(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refusal = err
}

// Refusal is why the handler is not to be called with msg, or nil.
func Refusal(msg *message.Message) error {
	r := of(msg.Context(), msg)
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.refusal
}

// of is the record of msg in ctx. A message may carry the context of the message that it was made from,
// and with it a record which is not its own.
func of(ctx context.Context, msg *message.Message) *Record {
	r, ok := ctx.Value(recordKey{}).(*Record)
	if !ok || r.id != msg.UUID || r.handler != message.HandlerNameFromCtx(ctx) || r.hasEnded() {
		return nil
	}
	return r
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

// Within has f called in the handler's transaction, if it has one of its own, after the handler succeeded
// and before COMMIT. It replaces an earlier one.
func (r *Record) Within(f func(ctx context.Context) error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.within = f
}

// RunWithin is called by whoever ends the handler's transaction. An error rolls it back.
func (r *Record) RunWithin(ctx context.Context) error {
	r.mu.Lock()
	f := r.within
	r.mu.Unlock()
	if f == nil {
		return nil
	}
	return f(ctx)
}

// SetCommitted says that the transaction in which RunWithin ran has committed.
func (r *Record) SetCommitted() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.committed = r.within != nil
}

// Committed reports whether what was left with Within has been committed.
func (r *Record) Committed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.committed
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
