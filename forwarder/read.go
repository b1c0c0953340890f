package forwarder

import (
	"context"
	"errors"
	"time"

	"github.com/millrace-go/millrace/internal/fault"
	"github.com/millrace-go/millrace/outbox"
)

// read looks for messages: when a commit of this process signals them, when memory has become free for
// more, and at the latest after the poll interval.
func (s *session) read(ctx context.Context) error {
	poll := s.cfg.PollInterval
	topics := topicCache{maxAge: s.cfg.PollInterval}
	due := time.Now()
	for {
		woken, ok := s.awaitRead(ctx, time.Until(due))
		if !ok {
			return nil
		}
		started := time.Now()
		found, err := s.readOnce(ctx, &topics, woken)
		if ctx.Err() != nil {
			return nil
		}
		switch {
		case err != nil:
			// The signal that caused this read must not be lost with it.
			topics.forget()
			poll = s.cfg.PollInterval
		case found > 0 || woken:
			poll = s.cfg.PollInterval
		case started.Before(due):
		default:
			poll = min(2*poll, s.cfg.MaxPollInterval)
		}
		s.readFailed(ctx, err)
		due = time.Now().Add(poll)
		if more, _ := s.wantsMore(); found > 0 && more {
			due = time.Now()
			continue
		}
		if woken && !sleep(ctx, coolDown) {
			return nil
		}
	}
}

// awaitRead waits for a reason to read. Woken says that a commit was signalled. Each flag is cleared
// before the read that serves it, so that what is committed during the read causes another.
func (s *session) awaitRead(ctx context.Context, d time.Duration) (woken, ok bool) {
	timer := time.NewTimer(max(d, 0))
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return false, false
		case <-s.wake.C():
			if s.mine(s.wake.Take()) {
				return true, true
			}
		case <-s.readWork:
			return false, true
		case <-timer.C:
			return false, true
		}
	}
}

// mine reports whether one of the lanes is held by this replica.
func (s *session) mine(lanes uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for number := range s.win.lanes {
		if lanes&(1<<number) != 0 {
			return true
		}
	}
	return false
}

// readOnce asks for the topics that are known to have something, and, if there was reason to expect
// something and nothing came, whether there is a new one.
func (s *session) readOnce(ctx context.Context, topics *topicCache, woken bool) (int, error) {
	fresh := topics.stale(time.Now())
	if fresh {
		if _, err := topics.refresh(ctx, s.store, s.storeTimeout()); err != nil {
			return 0, err
		}
	}
	hungry, _ := s.wantsMore()
	found, asked, err := s.readTopics(ctx, topics.names)
	if err != nil || found > 0 || fresh || !asked || !woken && !hungry {
		return found, err
	}
	news, err := topics.refresh(ctx, s.store, s.storeTimeout())
	if err != nil || !news {
		return 0, err
	}
	found, _, err = s.readTopics(ctx, topics.names)
	return found, err
}

// readTopics does one read. Asked is false if nothing can be taken up now.
func (s *session) readTopics(ctx context.Context, topics []string) (found int, asked bool, err error) {
	if len(topics) == 0 {
		return 0, true, nil
	}
	s.mu.Lock()
	q, ok := outbox.Read{}, false
	if !s.stopping && !s.overdue(time.Now()) {
		q, ok = s.win.beginRead(s.cfg.BatchRows, s.cfg.BatchBytes, topics)
	}
	s.mu.Unlock()
	if !ok {
		return 0, false, nil
	}
	call, cancel := context.WithTimeout(ctx, s.storeTimeout())
	defer cancel()
	rows, err := s.store.Read(call, q)
	if err == nil && len(rows) > 0 {
		fault.Point("forwarder.after_read")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil || s.stopping {
		s.win.abandonRead()
		return 0, true, err
	}
	found = s.win.endRead(q, rows)
	s.publishWork.set()
	if len(s.win.desk) > 0 {
		s.clerkWork.set()
	}
	return found, true, nil
}

func (s *session) wantsMore() (hungry, stopping bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.win.hungry, s.stopping
}

// readFailed logs that reading has begun to fail, or works again.
func (s *session) readFailed(ctx context.Context, err error) {
	s.mu.Lock()
	before := s.readErr
	s.readErr = err
	s.mu.Unlock()
	switch {
	case err != nil && before == nil && !errors.Is(err, context.Canceled):
		s.log.WarnContext(ctx, "outbox not read, trying on", "error", err)
	case err == nil && before != nil:
		s.log.InfoContext(ctx, "outbox read again")
	}
}

// topicCache is the list of topics that have something to read, as it was a moment ago.
type topicCache struct {
	maxAge time.Duration
	names  []string
	asked  time.Time
}

func (c *topicCache) stale(now time.Time) bool {
	return c.asked.IsZero() || now.Sub(c.asked) >= c.maxAge
}

func (c *topicCache) forget() { c.asked = time.Time{} }

// refresh asks for the list and reports whether it has changed.
func (c *topicCache) refresh(ctx context.Context, store outbox.Store, timeout time.Duration) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	asked := time.Now()
	topics, err := store.Topics(ctx)
	if err != nil {
		return false, err
	}
	names := topics.Ready
	known := make(map[string]bool, len(c.names))
	for _, name := range c.names {
		known[name] = true
	}
	news := false
	for _, name := range names {
		news = news || !known[name]
	}
	c.names, c.asked = names, asked
	return news, nil
}

// promote makes ready what has become due.
func (s *session) promote(ctx context.Context) error {
	for {
		s.mu.Lock()
		var grants []outbox.Grant
		for _, l := range s.win.lanes {
			if !l.leaving {
				grants = append(grants, l.grant)
			}
		}
		stopping := s.stopping
		s.mu.Unlock()
		wait := s.cfg.MaxPollInterval
		if len(grants) > 0 && !stopping {
			call, cancel := context.WithTimeout(ctx, s.storeTimeout())
			p, err := s.store.Promote(call, grants)
			cancel()
			if err == nil && p.Next > 0 {
				wait = min(wait, max(p.Next, time.Millisecond))
			}
			if err == nil && p.Ready > 0 {
				s.mu.Lock()
				s.win.hungry = true
				s.mu.Unlock()
				s.readWork.set()
			}
		}
		if !s.promoteWork.wait(ctx, wait) {
			return nil
		}
	}
}
