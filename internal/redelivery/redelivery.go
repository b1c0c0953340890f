// Package redelivery is what a message that comes out of a store knows of its copy there. The subscriber
// that took it and the middleware that says what becomes of it share it.
package redelivery

import (
	"context"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace/store"
)

// Run is one run of a stored message. It is safe for concurrent use.
type Run struct {
	// Handler is the handler for which the message is stored.
	Handler string
	begin   func(ctx context.Context, attempt int) (bool, error)

	mu    sync.Mutex
	entry store.Entry
	again bool
	delay time.Duration
}

// New returns the run of a message. Begin records that an attempt begins.
func New(handler string, e store.Entry, begin func(ctx context.Context, attempt int) (bool, error)) *Run {
	return &Run{Handler: handler, entry: e, begin: begin}
}

type key struct{}

// With returns a context that carries the run.
func With(ctx context.Context, r *Run) context.Context { return context.WithValue(ctx, key{}, r) }

// From returns the run of the message, or nil if it did not come out of a store. A message may carry
// the context of the message that it was made from, whose run is not its own.
func From(msg *message.Message) *Run {
	r, _ := msg.Context().Value(key{}).(*Run)
	if r == nil || r.entry.MessageID != msg.UUID {
		return nil
	}
	return r
}

// Entry is the stored message, with the attempts and the history that are known now.
func (r *Run) Entry() store.Entry {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.entry
}

// Begin records that the next attempt begins, and returns its number. False: somebody else holds the
// message.
func (r *Run) Begin(ctx context.Context) (attempt int, held bool, err error) {
	r.mu.Lock()
	attempt = r.entry.Attempts + 1
	r.mu.Unlock()
	held, err = r.begin(ctx, attempt)
	if held && err == nil {
		r.mu.Lock()
		r.entry.Attempts = attempt
		r.mu.Unlock()
	}
	return attempt, held, err
}

// Refund says that the latest attempt was none.
func (r *Run) Refund() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.entry.Attempts--
}

// Remember sets the history of the message.
func (r *Run) Remember(history []store.Failure) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.entry.History = history
}

// Again says that the message is to come again after the delay, though it will be acknowledged, with the
// attempts, returns and history of e.
func (r *Run) Again(e store.Entry, delay time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.again, r.delay = true, delay
	r.entry.Attempts, r.entry.Returns, r.entry.History = e.Attempts, e.Returns, e.History
}

// Decision is what Again said.
func (r *Run) Decision() (again bool, delay time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.again, r.delay
}
