package model_test

import (
	"context"
	"sync"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/internal/backoff"
	"github.com/millrace-go/millrace/outbox"
	"github.com/millrace-go/millrace/outbox/half"
)

// halfMessages are the half messages as one process has them.
func (w *world) halfMessages(l *life, box *outbox.Box, lacks int) *half.Messages {
	h := &w.halves
	cfg := half.Config{
		Witnesses:  map[string]millrace.DB{"shop": w.shop},
		Checkers:   map[string]half.Checker{"": w.checker(l)},
		Callback:   &half.Callback{Allow: []string{checkURL}},
		FirstCheck: h.firstCheck, CheckEvery: h.checkEvery, MaxChecks: h.maxChecks, CheckTimeout: h.timeout,
		MaxAge: h.maxAge, Retention: h.retention, Batch: h.batch,
		OnParked: func(_ context.Context, m half.Info) {
			w.mu.Lock()
			defer w.mu.Unlock()
			h.told[m.ID]++
		},
	}
	switch lacks {
	case 1:
		cfg.Witnesses = nil
	case 2:
		cfg.Checkers = nil
	case 3:
		cfg.Callback = nil
	}
	m, err := half.New(w.business, box, cfg)
	require.NoError(w, err)
	if cfg.Callback != nil {
		w.wire(l, m)
	}
	return m
}

// checkBack is a replica that checks back. All but the first one may lack what they would have to ask.
func (w *world) checkBack(l *life, box *outbox.Box, replica int) {
	l.weaken()
	lacks := 0
	if replica > 0 && !w.quiet {
		lacks = w.fate(6, "lacks", replica)
	}
	m := w.halfMessages(l, box, lacks)
	var work sync.WaitGroup
	defer work.Wait()
	work.Go(func() {
		for n := 1; backoff.Sleep(l.ctx, time.Duration(w.fate(40_000, l.name, n, "purges"))*time.Millisecond); n++ {
			_, _ = m.Purge(l.ctx) // as good as an outage lets it
		}
	})
	if err := m.Run(l.ctx); err != nil {
		w.mu.Lock()
		w.wrong("Run: %v", err)
		w.mu.Unlock()
	}
}

// decide is what a person does about half messages: look now and then at those that are parked, and at those that a
// checker ended.
func (w *world) decide(l *life, box *outbox.Box) {
	m := w.halfMessages(l, box, 0)
	for n := 1; backoff.Sleep(l.ctx, 5*time.Second); n++ {
		parked, _ := m.List(l.ctx, half.Parked, "", 100)
		ended, _ := m.List(l.ctx, half.Ended, "", 100)
		for _, i := range append(parked, ended...) {
			w.mu.Lock()
			d := w.deal(i.ID)
			never := d.closed && d.running == 0 && d.coming == 0 && w.pending == 0 && !d.done
			resume := i.State == half.Parked && w.fate(2, l.name, n, d.id) == 0
			commit := d.done && (i.State == half.Parked || i.Reason == byChecker)
			rollback := never && i.State == half.Parked
			d.let, d.dropped = d.let || commit && !resume, d.dropped || rollback && !resume
			w.mu.Unlock()
			switch {
			case resume:
				_ = m.Resume(l.ctx, i.ID)
			case commit:
				_ = m.Commit(l.ctx, i.ID)
			case rollback:
				_ = m.Rollback(l.ctx, i.ID)
			}
		}
	}
}
