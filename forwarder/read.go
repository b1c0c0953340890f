package forwarder

import (
	"context"
	"time"

	"github.com/millrace-go/millrace/internal/backoff"
	"github.com/millrace-go/millrace/internal/fault"
	"github.com/millrace-go/millrace/outbox"
)

// read takes up messages of the destination: when the look-out says so, and when memory has become free for
// more. The flag is cleared before the read that serves it, so that what is committed during the read
// causes another.
func (p *pipeline) read(ctx context.Context) error {
	for retry := time.Duration(0); p.readWork.wait(ctx, retry); {
		woken, number := p.takeWoken(retry > 0)
		retry = 0
		found, err := p.readOnce(ctx, woken, number)
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
	return nil
}

// takeWoken reports whether there is a reason to expect something, and the number of the last question of
// the look-out that was asked before there was.
func (p *pipeline) takeWoken(again bool) (woken bool, number int64) {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	woken, number = p.woken, p.wokenAt
	if !woken {
		woken, number = again, p.s.look.begun.Load()
	}
	p.woken = false
	return woken, number
}

func (p *pipeline) wantsMore() bool {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	return p.win.hungry && !p.s.stopping
}

// readOnce reads the topics that are known to have something, and, if there was reason to expect something
// and nothing came, asks whether there is a new one.
func (p *pipeline) readOnce(ctx context.Context, woken bool, number int64) (int, error) {
	hungry := p.wantsMore()
	found, asked, news, err := p.readTopics(ctx)
	if err != nil || found > 0 || !asked || !woken && !hungry {
		return found, err
	}
	if err := p.s.refresh(ctx, number, p); err != nil || !p.hasNews(news) {
		return 0, err
	}
	found, _, _, err = p.readTopics(ctx)
	return found, err
}

func (p *pipeline) hasNews(since int) bool {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	return p.news != since
}

// readTopics does one read. Asked is false if nothing can be taken up now. News is the state of the list of
// topics that it used.
func (p *pipeline) readTopics(ctx context.Context) (found int, asked bool, news int, err error) {
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
		q, ok = p.win.beginRead(p.cfg.BatchRows, p.cfg.BatchBytes, p.topics)
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
				s.awaken()
			}
		}
		if !s.promoteWork.wait(ctx, wait) {
			return nil
		}
	}
}
