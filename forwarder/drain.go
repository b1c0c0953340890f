package forwarder

import (
	"context"
	"fmt"
	"time"
)

// drain ends a session in good order: nothing new is read or handed out, the broker's answers to what
// is in flight are waited for and settled, within the lease. It returns errStopped when nothing is left
// unresolved; only then may the lanes be released. Otherwise they are free when the lease has ended.
func (s *session) drain(ctx context.Context) error {
	s.mu.Lock()
	s.stopping = true
	for number := range s.held() {
		s.leave(number)
	}
	s.mu.Unlock()

	flying := func() int { n, _ := s.unresolved(); return n }
	pending := func() int { n, m := s.unresolved(); return n + m }
	if !s.await(ctx, s.cfg.DrainTimeout, flying) {
		// What the broker has not answered by now is given up, and with it the publisher's channel.
		s.mu.Lock()
		s.unanswered = true
		s.mu.Unlock()
		s.stopPublishing()
		s.await(ctx, s.cfg.Lease/8, flying)
	}
	s.await(ctx, s.cfg.Lease/4, pending)

	s.mu.Lock()
	defer s.mu.Unlock()
	stuck := false
	for _, p := range s.pipes {
		stuck = stuck || !p.dest.state().stuck.IsZero()
	}
	left := pending()
	if left > 0 || stuck || s.unanswered {
		return fmt.Errorf("forwarder: stopped before the outcome of all messages was known or stored (%d); they may be sent again when the lease has ended", left)
	}
	return errStopped
}

// await waits until count, called with the lock held, is 0. False: it took longer.
func (s *session) await(ctx context.Context, d time.Duration, count func() int) bool {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	for {
		s.mu.Lock()
		n := count()
		s.mu.Unlock()
		if n == 0 {
			return true
		}
		s.moved()
		<-s.drained // moved has set it
		if !s.drained.wait(ctx, 0) {
			return false
		}
	}
}
