// Package backoff says how long to wait before the next try.
package backoff

import (
	"math/rand/v2"
	"time"
)

// Policy is exponential back-off with full jitter: before retry n (from 1) it waits a random time
// between 0 and Base·2^(n-1), at most Max. The zero Policy never waits.
//
// Full jitter keeps replicas that failed at the same moment from coming back at the same moment.
type Policy struct {
	Base time.Duration
	Max  time.Duration
}

// Delay returns the time to wait before retry n. It is never negative and never above Max; with a
// Base above 0 it is never 0.
func (p Policy) Delay(n int) time.Duration {
	top := p.Ceiling(n)
	if top <= 0 {
		return 0
	}
	return 1 + rand.N(top)
}

// Ceiling returns the longest time that Delay may return for retry n.
func (p Policy) Ceiling(n int) time.Duration {
	d := min(p.Base, p.Max)
	for ; n > 1 && d > 0 && d < p.Max; n-- {
		if d > p.Max/2 { // doubling might overflow
			return p.Max
		}
		d *= 2
	}
	return d
}
