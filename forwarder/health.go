package forwarder

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Condition is how a forwarder stands, for probes and dashboards.
type Condition struct {
	// Live is false if nothing but a new process helps: a publisher does not return from a call that was told
	// to end for three times PublishTimeout, or Run has ended.
	Live bool
	// Ready is true if messages flow: the forwarder runs, its lease is valid, the outbox can be read and
	// settled, and every destination answers.
	Ready bool
	// Lag is for how long the oldest message in hand has been there: read, and not yet delivered and settled.
	// It grows when a destination is slow or down. How long messages have waited in the outbox, the outbox
	// can tell.
	Lag time.Duration
	// Paused are the destinations to which nothing is sent because somebody paused them. They are no fault.
	Paused []string
	// Err says everything because of which it is not ready; nil if it is.
	Err error
}

// Health returns nil if the forwarder is ready, and otherwise an error that says everything because of which it
// is not: see Condition.
func (f *Forwarder) Health(context.Context) error { return f.Condition().Err }

// Condition says how the forwarder stands. It asks nobody: what it says is what the forwarder met last.
func (f *Forwarder) Condition() Condition {
	s := f.current.Load()
	switch running := f.running.Load(); {
	case s == nil && running:
		return Condition{Live: true, Err: errors.New("forwarder: the outbox has not answered yet")}
	case s == nil:
		return Condition{Err: errors.New("forwarder: not running")}
	}
	c := Condition{Live: true}
	now := time.Now()
	var errs []error
	if !s.lease.valid(now) {
		errs = append(errs, errors.New("forwarder: the lease has ended without a renewal"))
	}
	for _, d := range f.dests {
		at := d.state()
		switch {
		case !at.stuck.IsZero():
			stuck := now.Sub(at.stuck)
			c.Live = c.Live && stuck < 3*f.cfg.PublishTimeout
			errs = append(errs, fmt.Errorf("forwarder: the publisher of destination %q does not return since %v", d.name, stuck.Round(time.Second)))
		case at.err != nil && d.suspected():
			errs = append(errs, fmt.Errorf("forwarder: destination %q refuses everything since %v: %w", d.name, now.Sub(at.since).Round(time.Second), at.err))
		case at.err != nil:
			errs = append(errs, fmt.Errorf("forwarder: destination %q does not answer since %v: %w", d.name, now.Sub(at.since).Round(time.Second), at.err))
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, err := range s.readErrs {
		errs = append(errs, fmt.Errorf("forwarder: read the outbox: %w", err))
		break // they are all about the same outbox
	}
	if s.overdue(now) {
		errs = append(errs, fmt.Errorf("forwarder: confirmed messages cannot be settled since %v; reading has stopped", now.Sub(s.settleFails).Round(time.Second)))
	}
	for _, p := range s.pipes {
		if p.paused {
			c.Paused = append(c.Paused, p.dest.name)
		}
		for _, it := range p.win.known {
			c.Lag = max(c.Lag, now.Sub(it.since))
		}
	}
	c.Ready, c.Err = len(errs) == 0, errors.Join(errs...)
	return c
}
