package txn

import (
	"context"
	"fmt"
	"sync"
)

// Crew runs functions in a bounded number of goroutines. Each goroutine ends with its function, so that
// an idle Crew holds nothing.
type Crew struct {
	workers, room int

	mu      sync.Mutex
	queue   []func()
	running int
	closed  bool
	idle    chan struct{} // closed when a closed Crew has nothing left; made by the first Close
}

// NewCrew starts nothing.
func NewCrew(workers, room int) *Crew { return &Crew{workers: workers, room: room} }

// take has fn run soon, or returns false.
func (c *Crew) take(fn func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
		return false
	case c.running < c.workers:
		c.running++
		go c.work(fn)
	case len(c.queue) < c.room:
		c.queue = append(c.queue, fn)
	default:
		return false
	}
	return true
}

func (c *Crew) work(fn func()) {
	defer c.next() // also when fn ends its goroutine
	fn()
}

func (c *Crew) next() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.queue) > 0 {
		fn := c.queue[0]
		c.queue[0] = nil
		c.queue = c.queue[1:]
		go c.work(fn)
		return
	}
	c.running--
	if c.running == 0 && c.closed {
		close(c.idle)
	}
}

// Close has take refuse, and waits for what was taken before.
func (c *Crew) Close(ctx context.Context) error {
	c.mu.Lock()
	if !c.closed {
		c.closed = true
		c.idle = make(chan struct{})
		if c.running == 0 {
			close(c.idle)
		}
	}
	c.mu.Unlock()
	select {
	case <-c.idle:
		return nil
	case <-ctx.Done():
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.running == 0 {
		return nil
	}
	return fmt.Errorf("millrace: close: %d hooks are running, %d wait: %w", c.running, len(c.queue), ctx.Err())
}
