package forwarder

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Stats is what a forwarder has done since it was made, and what it has in hand.
type Stats struct {
	Running bool
	Lanes   int // held
	Read    int // rows in memory: waiting to be published, in flight, or to be settled
	Flying  int // of these, with the publisher
	Pending int // of these, with the publisher, or answered and not yet stored

	Published int64 // messages that the broker confirmed
	Settled   int64 // rows deleted
	Refused   int64 // attempts that the broker refused and that will be repeated
	Parked    int64
}

// Stats returns a snapshot. It may be called at any time.
func (f *Forwarder) Stats() Stats {
	st := Stats{
		Running:   f.running.Load(),
		Published: f.counts.published.Load(), Settled: f.counts.settled.Load(),
		Refused: f.counts.refused.Load(), Parked: f.counts.parked.Load(),
	}
	if s := f.current.Load(); s != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		st.Lanes, st.Read = len(s.win.lanes), len(s.win.known)
		st.Flying, st.Pending = s.win.flying, s.win.unresolved()
	}
	return st
}

// Health returns nil if the forwarder runs, its lease is valid, the outbox can be read and settled, and the
// destination answers; otherwise an error that names everything that is not so. It asks nobody: what it says
// is what the forwarder met last.
func (f *Forwarder) Health(context.Context) error {
	s := f.current.Load()
	if s == nil {
		return errors.New("forwarder: not running")
	}
	var errs []error
	now := time.Now()
	if !s.lease.valid(now) {
		errs = append(errs, errors.New("forwarder: the lease has ended without a renewal"))
	}
	if failures, err, stuck := f.dest.failing(); !stuck.IsZero() {
		errs = append(errs, fmt.Errorf("forwarder: the publisher does not return since %v", now.Sub(stuck).Round(time.Second)))
	} else if failures > 0 {
		errs = append(errs, fmt.Errorf("forwarder: destination %q does not answer: %w", f.dest.name, err))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.readErr != nil {
		errs = append(errs, fmt.Errorf("forwarder: read the outbox: %w", s.readErr))
	}
	if s.overdue(now) {
		errs = append(errs, fmt.Errorf("forwarder: confirmed messages cannot be settled since %v; reading has stopped", now.Sub(s.settleFails).Round(time.Second)))
	}
	return errors.Join(errs...)
}
