package forwarder

import (
	"context"
	"time"
)

// signal is a flag that one goroutine waits for: setting it twice is setting it once, and what is set
// while nobody waits is not lost.
type signal chan struct{}

func newSignal() signal { return make(signal, 1) }

func (s signal) set() {
	select {
	case s <- struct{}{}:
	default:
	}
}

// take clears the flag, and reports whether it was set.
func (s signal) take() bool {
	select {
	case <-s:
		return true
	default:
		return false
	}
}

// wait returns when the flag was set, which clears it, or after d, if d is above 0. False: ctx has ended.
func (s signal) wait(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		select {
		case <-ctx.Done():
			return false
		case <-s:
			return true
		}
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-s:
	case <-timer.C:
	}
	return true
}
