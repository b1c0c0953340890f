package forwarder

import (
	"context"
	"time"

	"github.com/millrace-go/millrace/internal/backoff"
	"github.com/millrace-go/millrace/internal/fault"
	"github.com/millrace-go/millrace/outbox"
)

// everyLane is the mask of all lanes.
const everyLane = ^uint64(0)

// read takes up messages of the destination: when the look-out says so, and when memory has become free for
// more. The flag is cleared before the read that serves it, so that what is committed during the read
// causes another.
func (p *pipeline) read(ctx context.Context) error {
	retry := time.Duration(0)
	for {
		all, ok := p.waitToRead(ctx, retry)
		if !ok {
			return nil
		}
		lanes, number := p.takeWoken(retry > 0)
		woken := lanes != 0
		if all {
			lanes = everyLane
		} else if !woken {
			continue // the read before this one has seen to it
		}
		retry = 0
		found, err := p.readOnce(ctx, woken, lanes, number)
		if ctx.Err() != nil {
			return nil
		}
		p.s.readFailed(ctx, "destination "+p.dest.name, err)
		if err != nil {
			retry = p.cfg.PollInterval // the signal that caused this read must not be lost with it
		}
		if found > 0 {
			p.s.look.found.set()
			if p.wantsMore() {
				p.readWork.set()
				continue
			}
		}
		if woken && !backoff.Sleep(ctx, coolDown) {
			return nil
		}
	}
}

// waitToRead waits for a reason to read, or for d if that is above 0. All is false if the only reason is a commit
// that was signalled with its lanes. False: ctx has ended.
func (p *pipeline) waitToRead(ctx context.Context, d time.Duration) (all, ok bool) {
	var over <-chan time.Time
	if d > 0 {
		timer := time.NewTimer(d)
		defer timer.Stop()
		over = timer.C
	}
	select {
	case <-ctx.Done():
		return false, false
	case <-over:
		all = true
	case <-p.readWork:
		all = true
	case <-p.wakeWork:
	}
	return p.readWork.take() || all || d > 0, true
}

// takeWoken returns the lanes of which there is a reason to expect something, 0 if there is none, and the number
// of the last question of the look-out that was asked before there was.
func (p *pipeline) takeWoken(again bool) (lanes uint64, number int64) {
	p.wakeWork.take()
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	lanes, number = p.woken, p.wokenAt
	p.woken = 0
	if lanes == 0 {
		number = p.s.look.begun.Load()
	}
	if again {
		lanes = everyLane
	}
	return lanes, number
}

func (p *pipeline) wantsMore() bool {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	return p.win.hungry && !p.s.stopping
}

// readOnce reads the topics that are known to have something, in some lanes, and, if there was reason to expect
// something and nothing came, asks whether there is a new one.
func (p *pipeline) readOnce(ctx context.Context, woken bool, lanes uint64, number int64) (int, error) {
	hungry := p.wantsMore()
	found, asked, news, err := p.readTopics(ctx, lanes)
	if err != nil || found > 0 || !asked || !woken && !hungry {
		return found, err
	}
	if err := p.s.refresh(ctx, number, p); err != nil || !p.hasNews(news) {
		return 0, err
	}
	found, _, _, err = p.readTopics(ctx, everyLane)
	return found, err
}

func (p *pipeline) hasNews(since int) bool {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	return p.news != since
}

// readTopics does one read. Asked is false if nothing can be taken up now. News is the state of the list of
// topics that it used.
func (p *pipeline) readTopics(ctx context.Context, lanes uint64) (found int, asked bool, news int, err error) {
	s := p.s
	s.mu.Lock()
	news = p.news
	if len(p.topics) == 0 {
		p.win.hungry = false
		s.mu.Unlock()
		return 0, true, news, nil
	}
	q, ok := outbox.Read{}, false
	if !s.stopping && !s.overdue(time.Now()) {
		q, ok = p.win.beginRead(p.cfg.BatchRows, p.cfg.BatchBytes, p.topics, lanes)
	}
	s.mu.Unlock()
	if !ok {
		return 0, false, news, nil
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
		p.win.abandonRead()
		return 0, true, news, err
	}
	found = p.win.endRead(q, rows)
	p.publishWork.set()
	if len(p.win.desk) > 0 {
		s.clerkWork.set()
	}
	return found, true, news, nil
}

// promote makes ready what has become due.
func (s *session) promote(ctx context.Context) error {
	for {
		s.mu.Lock()
		var grants []outbox.Grant
		for _, l := range s.held() {
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
				s.awaken(everyLane)
			}
		}
		if !s.promoteWork.wait(ctx, wait) {
			return nil
		}
	}
}
