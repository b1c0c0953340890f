package delayed

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace/internal/backoff"
	"github.com/millrace-go/millrace/internal/died"
	"github.com/millrace-go/millrace/internal/fault"
	"github.com/millrace-go/millrace/store"
)

// subscription is one Subscribe call: one goroutine passes the broker's messages on, one takes what is
// due, and one goes with each stored message.
type subscription struct {
	store store.Delayed
	cfg   Config
	log   *slog.Logger
	out   chan *message.Message

	values context.Context // of Subscribe: its values, not its end
	ctx    context.Context // ends when no more is to be taken
	cancel context.CancelFunc
	// abandon is closed when handlers are given up.
	abandon chan struct{}
	giveUp  func()        // closes abandon, once
	slots   chan struct{} // one for each stored message in hand
	wake    chan struct{} // a message was settled: more may be due
}

func newSubscription(ctx context.Context, cancel context.CancelFunc, s *subscriber) *subscription {
	sub := &subscription{
		store: s.store, cfg: s.cfg, out: make(chan *message.Message),
		log:    s.cfg.Logger.With("handler", s.cfg.Handler, "group", s.cfg.Group),
		values: context.WithoutCancel(ctx), ctx: ctx, cancel: cancel,
		abandon: make(chan struct{}),
		slots:   make(chan struct{}, s.cfg.Concurrency),
		wake:    make(chan struct{}, 1),
	}
	sub.giveUp = sync.OnceFunc(func() { close(sub.abandon) })
	go func() {
		select {
		case <-s.closing:
			cancel()
		case <-ctx.Done():
		}
	}()
	return sub
}

// run does the work until in is closed and nothing is in hand.
func (s *subscription) run(in <-chan *message.Message) {
	defer close(s.out)
	defer s.cancel()
	go func() {
		<-s.ctx.Done()
		timer := time.NewTimer(s.cfg.CloseTimeout)
		defer timer.Stop()
		select {
		case <-timer.C:
			s.giveUp()
		case <-s.abandon:
		}
	}()
	var workers sync.WaitGroup
	workers.Go(func() { s.takeLoop(&workers) })
	s.pass(in)
	s.cancel() // nothing is handed out after the broker's side has ended
	workers.Wait()
	s.giveUp()
}

// pass hands on the broker's messages. What nobody takes any more is the broker's again.
func (s *subscription) pass(in <-chan *message.Message) {
	for msg := range in {
		select {
		case s.out <- msg:
		case <-s.abandon:
			msg.Nack()
		}
	}
}

// between is how long to wait before a store that failed is asked again.
var between = backoff.Policy{Base: 200 * time.Millisecond, Max: 5 * time.Second}

// takeLoop takes what is due as long as there are slots.
func (s *subscription) takeLoop(workers *sync.WaitGroup) {
	checked, failures := false, 0
	for s.ctx.Err() == nil {
		wait, err := time.Duration(0), error(nil)
		if !checked {
			err = s.call(s.store.Check)
			checked = err == nil
		}
		if err == nil {
			wait, err = s.takeOnce(workers)
		}
		switch {
		case s.ctx.Err() != nil:
			return
		case errors.Is(err, store.ErrSetup):
			s.log.ErrorContext(s.values, "delayed: subscription ends", "error", err)
			died.Report(s.ctx, err)
			s.cancel()
			return
		case err != nil:
			if failures++; failures == 1 {
				s.log.WarnContext(s.values, "delayed: the store does not answer; what is stored waits", "error", err)
			}
			wait = between.Delay(failures)
		case failures > 0:
			s.log.InfoContext(s.values, "delayed: the store answers again", "failures", failures)
			failures = 0
		}
		s.sleep(wait)
	}
}

// call asks the store within its deadline.
func (s *subscription) call(f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(s.values, s.cfg.Timeout)
	defer cancel()
	return f(ctx)
}

// takeOnce waits for a slot, takes as many messages as there are slots, and hands them out. It returns how
// long to wait before the next time.
func (s *subscription) takeOnce(workers *sync.WaitGroup) (time.Duration, error) {
	select {
	case s.slots <- struct{}{}:
	case <-s.ctx.Done():
		return 0, nil
	}
	free := 1 // slots that are ours
	for more := true; more && free < cap(s.slots); {
		select {
		case s.slots <- struct{}{}:
			free++
		default:
			more = false
		}
	}
	defer func() {
		for range free {
			<-s.slots
		}
	}()
	owner, askedAt := rand.Text(), time.Now()
	var taken []store.Entry
	var next time.Duration
	err := s.call(func(ctx context.Context) (err error) {
		taken, next, err = s.store.Take(ctx, store.Take{Group: s.cfg.Group, Owner: owner, Limit: free, Lease: s.cfg.Lease,
			OnUnreadable: s.unreadable})
		return err
	})
	if err != nil {
		return 0, err
	}
	fault.Point("delayed.taken")
	for _, e := range taken {
		free--
		workers.Go(func() {
			defer func() { <-s.slots; s.signal() }()
			s.deliver(e, owner, askedAt)
		})
	}
	switch {
	case next < 0 || next > s.cfg.Poll:
		next = s.cfg.Poll
	case len(taken) == 0: // due, and with somebody else by now
		next = max(next, min(s.cfg.Poll, 20*time.Millisecond))
	}
	return next, nil
}

// unreadable tells of a message that the store could not read.
func (s *subscription) unreadable(messageID string, err error) {
	s.log.ErrorContext(s.values, "delayed: a stored message cannot be read; it is set aside as a dead letter",
		"message_id", messageID, "reason", store.ReasonUnreadable, "error", err)
}

func (s *subscription) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// sleep waits for d, a signal, or the end.
func (s *subscription) sleep(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-s.wake:
	case <-s.ctx.Done():
	}
}
