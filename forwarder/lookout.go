package forwarder

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"time"

	"github.com/millrace-go/millrace/outbox"
)

// lookout is the one place from which all destinations look for messages: one question for all of them.
type lookout struct {
	turn  chan struct{} // taken while the store is asked
	begun atomic.Int64  // number of the last question
	known int64         // number of the last one that was answered; of who has the turn
	now   signal        // look without waiting for the poll
	found signal        // there was something: look again soon
}

func newLookout() *lookout {
	return &lookout{turn: make(chan struct{}, 1), now: newSignal(), found: newSignal()}
}

// lookOut tells the pipelines to read: when a commit of this process signals it, when lanes came, and at the
// latest after the poll interval, which doubles as long as nothing comes.
func (s *session) lookOut(ctx context.Context) error {
	poll := s.cfg.PollInterval
	timer := time.NewTimer(0)
	defer timer.Stop()
	for due := time.Now(); ; timer.Reset(time.Until(due)) {
		select {
		case <-ctx.Done():
			return nil
		case <-s.wake.C():
			lanes := s.wake.Take()
			if !s.mine(lanes) {
				continue
			}
			s.awaken(lanes)
			poll = s.cfg.PollInterval
			due = earlier(due, time.Now().Add(poll))
			continue
		case <-s.look.found:
			poll = s.cfg.PollInterval
			due = earlier(due, time.Now().Add(poll))
			continue
		case <-s.look.now:
			poll = s.cfg.PollInterval
		case <-timer.C:
		}
		err := s.refresh(ctx, s.look.begun.Load(), nil)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			poll = s.cfg.PollInterval
		}
		due = time.Now().Add(poll)
		poll = min(2*poll, s.cfg.MaxPollInterval)
		s.mu.Lock()
		for _, p := range s.pipes {
			if len(p.topics) > 0 {
				p.readWork.set()
			}
		}
		s.mu.Unlock()
	}
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// mine reports whether one of the lanes is held by this replica.
func (s *session) mine(lanes uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for number := range s.held() {
		if lanes&(1<<number) != 0 {
			return true
		}
	}
	return false
}

// awaken lets every pipeline read some lanes: one of them has something new, and nobody knows which.
func (s *session) awaken(lanes uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	number := s.look.begun.Load()
	for _, p := range s.pipes {
		p.woken, p.wokenAt = p.woken|lanes, number
		p.wakeWork.set()
	}
}

// refresh asks which topics have something to read, unless somebody did after the question of the given
// number, and tells the pipelines that have a new one; but not the one that asks.
func (s *session) refresh(ctx context.Context, after int64, asker *pipeline) error {
	select {
	case s.look.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-s.look.turn }()
	if s.look.known > after {
		return nil
	}
	s.mu.Lock()
	rounds := make([]int, len(s.pipes))
	for i, p := range s.pipes {
		rounds[i] = p.win.beginRound()
	}
	s.mu.Unlock()
	number := s.look.begun.Add(1)
	call, cancel := context.WithTimeout(ctx, s.storeTimeout())
	defer cancel()
	topics, err := s.store.Topics(call)
	s.readFailed(ctx, "the list of topics", err)
	if err != nil {
		return err
	}
	s.look.known = number
	for i, items := range s.takeUp(topics, rounds, asker) {
		s.f.told.dropped(ctx, s.pipes[i].batch(items), DropPaused)
	}
	return nil
}

// takeUp tells the pipelines, but not the one that asked, what there is to read, and returns what each has
// dropped because it may not go any more.
func (s *session) takeUp(topics outbox.Topics, rounds []int, asker *pipeline) (dropped [][]*item) {
	dropped = make([][]*item, len(s.pipes))
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, names := range s.f.table.split(topics.Ready) {
		p := s.pipes[i]
		p.paused = slices.Contains(topics.Paused, p.dest.name)
		if p.paused {
			names = nil
		}
		news := slices.ContainsFunc(names, func(name string) bool { return !slices.Contains(p.topics, name) })
		p.topics = names
		if dropped[i] = p.win.endRound(rounds[i], names); p.win.hungry && p != asker {
			p.readWork.set()
		}
		if len(p.win.desk) > 0 {
			s.clerkWork.set()
		}
		if news {
			if p.news++; p != asker {
				p.readWork.set()
			}
		}
	}
	return dropped
}

// readFailed logs that looking for messages has begun to fail, or works again.
func (s *session) readFailed(ctx context.Context, what string, err error) {
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return
	}
	s.mu.Lock()
	before := len(s.readErrs)
	if err != nil {
		s.readErrs[what] = err
	} else {
		delete(s.readErrs, what)
	}
	now := len(s.readErrs)
	s.mu.Unlock()
	switch {
	case before == 0 && now > 0:
		s.log.WarnContext(ctx, "outbox not read, trying on", "error", err)
	case before > 0 && now == 0:
		s.log.InfoContext(ctx, "outbox read again")
	}
}
