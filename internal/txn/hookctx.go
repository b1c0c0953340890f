package txn

import (
	"context"
	"sync"
	"time"
)

// hookContext is the context that a hook gets: the values of the one around it without the transactions, a deadline
// of its own, and how the transaction ended. Most hooks never wait for their deadline, so it costs a timer only once
// Done is asked for.
type hookContext struct {
	outer    context.Context // its end does not matter
	deadline time.Time
	ending

	mu     sync.Mutex
	over   bool            // the hook has returned
	timed  context.Context // outer with the deadline, once somebody waits for it
	cancel context.CancelFunc
}

// Deadline implements context.Context.
func (c *hookContext) Deadline() (time.Time, bool) { return c.deadline, true }

// Done implements context.Context.
func (c *hookContext) Done() <-chan struct{} { return c.wait().Done() }

// Err implements context.Context.
func (c *hookContext) Err() error {
	c.mu.Lock()
	timed, over := c.timed, c.over
	c.mu.Unlock()
	switch {
	case timed != nil:
		return timed.Err()
	case over:
		return context.Canceled
	case time.Now().Before(c.deadline):
		return nil
	}
	return c.wait().Err() // from now on the same
}

// Value implements context.Context. Contexts made from this one find timed in it, and need no goroutine to follow it.
func (c *hookContext) Value(key any) any {
	switch key.(type) {
	case endedKey:
		return &c.ending
	case contextKey:
		return (*node)(nil)
	case depthKey:
		return c.runner.depth
	}
	c.mu.Lock()
	from := c.timed
	c.mu.Unlock()
	if from == nil {
		from = c.outer
	}
	return from.Value(key)
}

func (c *hookContext) wait() context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.timed == nil {
		c.timed, c.cancel = context.WithDeadline(context.WithoutCancel(c.outer), c.deadline)
		if c.over {
			c.cancel()
		}
	}
	return c.timed
}

// end cancels the context.
func (c *hookContext) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = true
	if c.cancel != nil {
		c.cancel()
	}
}

// ending is what the context of a hook knows of the transaction that has ended.
type ending struct {
	runner  *runner
	outcome Outcome
	round   int
}

type endedKey struct{}

// Ended returns the outcome of the transaction whose hook ctx was given to.
func Ended(ctx context.Context) (Outcome, bool) {
	e, ok := ctx.Value(endedKey{}).(*ending)
	if !ok {
		return Unknown, false
	}
	return e.outcome, true
}
