package middleware

import (
	"sync"
	"time"

	"github.com/millrace-go/millrace/internal/backoff"
)

// breaker keeps a store that does not answer from being asked by every message. After a few failures
// in a row one caller at a time may try, after growing waits.
type breaker struct {
	mu       sync.Mutex
	failures int
	nextTry  time.Time
}

const failuresToOpen = 5

var storeBackoff = backoff.Policy{Base: 100 * time.Millisecond, Max: 5 * time.Second}

// wait returns 0 if the caller may ask the store now, else how long to wait before asking here again.
func (b *breaker) wait() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.failures < failuresToOpen {
		return 0
	}
	now := time.Now()
	if d := b.nextTry.Sub(now); d > 0 {
		return d
	}
	// The one who is let through may hang until its deadline; nobody else does meanwhile.
	b.nextTry = now.Add(b.pause())
	return 0
}

func (b *breaker) pause() time.Duration {
	n := b.failures - failuresToOpen + 1
	return storeBackoff.Ceiling(n)/2 + storeBackoff.Delay(n)/2
}

func (b *breaker) succeeded() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.failures = 0
}

func (b *breaker) failed() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.failures++
	b.nextTry = time.Now().Add(b.pause())
}
