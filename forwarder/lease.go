package forwarder

import (
	"context"
	"errors"
	"sync"
	"time"
)

// errLost says that the replica's registration is gone: everything it held may be somebody else's.
var errLost = errors.New("forwarder: the lease was lost")

// lease is what this process may believe of its own lease without asking the database.
//
// It counts from before the renewal was sent, and a tenth less than was asked for: the database, which
// started counting later, still considers it valid when this process has stopped believing in it.
type lease struct {
	length time.Duration

	mu   sync.Mutex
	sent time.Time
}

// renewed notes that a renewal sent at that time succeeded. It also revives a lease that had run out:
// nobody took the replica's lanes, or the renewal would have failed.
func (l *lease) renewed(sent time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sent = sent
}

// valid reports whether messages may be handed to a publisher.
func (l *lease) valid(now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.sent.IsZero() {
		return false
	}
	elapsed := now.Sub(l.sent)
	// A machine that was suspended may not have counted the time on its monotonic clock.
	if drift := now.Round(0).Sub(l.sent.Round(0)) - elapsed; drift.Abs() > time.Second {
		return false
	}
	return elapsed < l.length-l.length/10
}

// keepLease renews until ctx ends, or returns errLost.
func (s *session) keepLease(ctx context.Context) error {
	var beat, unsure int64
	tick := time.NewTicker(s.cfg.Lease / 4)
	defer tick.Stop()
	for failing := false; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		sent := time.Now()
		renewed, next, err := s.renew(ctx, beat, unsure)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			unsure++ // it may have arrived
			if !failing {
				s.log.WarnContext(ctx, "lease not renewed, trying on", "error", err)
			}
			failing = true
		case !renewed:
			return errLost
		default:
			if failing {
				s.log.InfoContext(ctx, "lease renewed again")
			}
			beat, unsure, failing = next, 0, false
			s.lease.renewed(sent)
			s.moved()
		}
	}
}

// maxUnsure bounds how many renewals without an answer are taken into account. After a long outage there are
// thousands, of which hardly one was applied; to ask for each would take longer than a renewal may.
const maxUnsure = 16

// renew moves the beat on. Renewals whose answer never came may have been applied, so that the beat may
// be up to that many higher; it is never lower, unless the database went back in time.
func (s *session) renew(ctx context.Context, beat, unsure int64) (renewed bool, next int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Lease/2)
	defer cancel()
	down := s.unreached()
	for b := beat; b <= beat+min(unsure, maxUnsure); b++ {
		ok, err := s.store.Renew(ctx, s.replica, b, s.cfg.Lease, down)
		if ok && err == nil {
			s.reported(down)
		}
		if ok || err != nil {
			return ok, b + 1, err
		}
	}
	return false, 0, nil
}
