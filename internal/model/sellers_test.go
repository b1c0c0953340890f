package model_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/internal/backoff"
	"github.com/millrace-go/millrace/internal/txn"
	"github.com/millrace-go/millrace/outbox"
	"github.com/millrace-go/millrace/outbox/half"
)

// try is one of a client: somebody is to sell a deal.
type try struct {
	deal *deal
	n    int
	done chan error
}

// offer has clients try their deals, again after errors, some before they have heard of the try before.
func (w *world) offer(ctx context.Context, work *sync.WaitGroup) (tries chan try, done chan struct{}) {
	tries, done = make(chan try), make(chan struct{})
	var clients sync.WaitGroup
	for _, d := range w.halves.deals {
		clients.Go(func() {
			backoff.Sleep(ctx, time.Duration(w.fate(int(w.lasts/time.Millisecond), "offers", d.id))*time.Millisecond)
			w.client(ctx, d, tries)
		})
	}
	work.Go(func() {
		clients.Wait()
		close(done)
	})
	return tries, done
}

// note is notes for who does not hold the lock.
func (w *world) note(d *deal, format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.notes(d, format, args...)
}

func (w *world) client(ctx context.Context, d *deal, tries chan<- try) {
	began := time.Now()
	var open sync.WaitGroup
	defer open.Wait()
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		d.closed = true
	}()
	for n := 1; ; n++ {
		w.mu.Lock()
		closed := d.closed
		if !closed {
			d.tries++
			d.running++
		}
		w.mu.Unlock()
		if closed {
			return
		}
		w.note(d, "try %d", n)
		t := try{d, n, make(chan error, 1)}
		heard := make(chan error, 1)
		open.Go(func() {
			select {
			case tries <- t:
				err := <-t.done
				w.note(d, "try %d ends: %v", n, err)
				heard <- err
			case <-ctx.Done():
				heard <- ctx.Err()
			}
			w.mu.Lock()
			d.running--
			w.mu.Unlock()
		})
		var impatient <-chan time.Time
		if !w.quiet && w.fate(3, "impatient", d.id, n) == 0 {
			timer := time.NewTimer(time.Duration(w.fate(8000, "how impatient", d.id, n)) * time.Millisecond)
			defer timer.Stop()
			impatient = timer.C
		}
		var err error
		select {
		case err = <-heard:
		case <-impatient:
			err = context.DeadlineExceeded
		}
		switch {
		case err == nil, errors.Is(err, half.ErrRolledBack), errors.Is(err, half.ErrCommitted), w.fate(3, "gives up", d.id, n) == 0:
			return
		case n == 3, time.Since(began) > w.halves.retention/2: // what was decided may be forgotten soon
			return
		}
		backoff.Sleep(ctx, time.Duration(w.fate(5000, "pause", d.id, n))*time.Millisecond)
	}
}

// sell is a process of the producer.
func (w *world) sell(l *life, box *outbox.Box, tries <-chan try) {
	l.weaken()
	m := w.halfMessages(l, box, 0)
	var work sync.WaitGroup
	defer work.Wait()
	for {
		select {
		case <-l.ctx.Done():
			if l.over() {
				saw(sawDeadSeller)
			}
			return
		case t := <-tries:
			work.Go(func() { t.done <- w.tries(l, m, t.deal, t.n) })
		}
	}
}

func (w *world) tries(l *life, m *half.Messages, d *deal, n int) error {
	msg := message.NewMessage(d.id, []byte("payload of "+d.id))
	msg.Metadata["kind"] = "half"
	byHand := w.fate(3, "by hand", d.id) == 0
	name := fmt.Sprint("try ", d.id, "/", n)
	w.dawdle(l, name)
	switch {
	case d.way == witnessed && byHand:
		return w.sellByHand(l, m, d, msg, name)
	case d.way == witnessed:
		err := half.InTx(l.ctx, m, w.shop, d.topic, msg, func(ctx context.Context, tx *txn.Tx) error { return w.local(ctx, l, d, tx, name) })
		w.compare(d, err)
		return err
	case d.way == called:
		return w.sellRemotely(l, m, d, msg, name)
	case !byHand:
		return m.Do(l.ctx, d.topic, msg, func(context.Context) error { return w.order(l, d) })
	}
	if err := m.Prepare(l.ctx, d.topic, msg); err != nil {
		return err
	}
	w.dawdle(l, name, "prepared")
	err := w.order(l, d)
	switch {
	case err == nil:
		w.must(d, m.Commit(l.ctx, d.id))
	case errors.Is(err, errBusiness):
		w.must(d, m.Rollback(l.ctx, d.id))
	}
	return err
}

// local is the local transaction of a deal.
func (w *world) local(ctx context.Context, l *life, d *deal, tx *txn.Tx, name string) error {
	if _, err := tx.Exec(ctx, insertEffect, d.id); err != nil {
		return err
	}
	w.dawdle(l, name, "inside")
	if d.ends {
		return errBusiness
	}
	return nil
}

// compare looks whether what the producer heard of its transaction is true. The caller holds no lock.
func (w *world) compare(d *deal, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err == nil && !d.done {
		w.wrong("%s: the producer heard that it committed, and it has not", d.id)
	}
	if err != nil && d.done && d.tries == 1 && !errors.As(err, new(*millrace.UnknownOutcomeError)) {
		w.wrong("%s: the producer heard %v, and it has committed", d.id, err)
	}
}

// must looks whether the last word was accepted where it is true, unless there was an outage.
func (w *world) must(d *deal, err error) {
	if errors.Is(err, half.ErrRolledBack) || errors.Is(err, half.ErrCommitted) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.wrong("%s: the producer decided, and hears: %v", d.id, err)
	}
}

// sellByHand is InTx in its parts. Some go on although the witness could not be written.
func (w *world) sellByHand(l *life, m *half.Messages, d *deal, msg *message.Message, name string) error {
	witness, err := m.PrepareWitnessed(l.ctx, w.shop, d.topic, msg)
	if err != nil {
		return err
	}
	w.dawdle(l, name, "prepared")
	err = millrace.InTx(l.ctx, w.shop, func(ctx context.Context, tx *txn.Tx) error {
		if err := witness.Write(ctx); err != nil {
			saw(sawRefused)
			if errors.Is(err, half.ErrTooLate) {
				saw(sawTooLate)
			}
			if w.fate(2, "careless", d.id) == 0 {
				return err
			}
		}
		return w.local(ctx, l, d, tx, name)
	})
	w.compare(d, err)
	w.dawdle(l, name, "ended")
	w.mu.Lock()
	knows := d.tries == 1 && err != nil && !errors.As(err, new(*millrace.UnknownOutcomeError))
	if knows { // and sees to it that nobody tries again
		d.closed, d.dropped = true, true
	}
	w.mu.Unlock()
	switch {
	case err == nil:
		w.must(d, m.Commit(l.ctx, d.id))
	case knows:
		w.must(d, m.Rollback(l.ctx, d.id))
	}
	return err
}

// sellRemotely is a producer that has nothing but HTTP.
func (w *world) sellRemotely(l *life, m *half.Messages, d *deal, msg *message.Message, name string) error {
	h, err := m.Handler(func(*http.Request) error { return nil })
	require.NoError(w, err)
	code, err := w.post(l, h, "/half", map[string]any{
		"id": d.id, "topic": d.topic, "metadata": msg.Metadata, "payload": []byte(msg.Payload), "check_url": checkURL + d.id,
	})
	switch {
	case err != nil:
		return err
	case code == http.StatusConflict:
		return half.ErrRolledBack // or committed
	case code != http.StatusCreated:
		return errAway
	}
	w.dawdle(l, name, "prepared")
	err = w.order(l, d)
	word := map[bool]string{true: "commit", false: "rollback"}[err == nil]
	if err == nil || errors.Is(err, errBusiness) {
		if code, lost := w.post(l, h, "/half/"+d.id+"/"+word, nil); lost == nil && code == http.StatusConflict {
			w.must(d, half.ErrRolledBack)
		}
	}
	return err
}

// post sends a request until it was served.
func (w *world) post(l *life, h http.Handler, path string, body any) (code int, err error) {
	text, err := json.Marshal(body)
	require.NoError(w, err)
	for n := 1; n <= 3; n++ {
		name := fmt.Sprint(l.name, "/post ", path, "/", l.nth("post "+path))
		w.dawdle(l, name)
		if w.strikes(w.chaos.callFails, name, "fails") {
			continue
		}
		if _, err := l.step("post"); err != nil {
			return 0, err
		}
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, httptest.NewRequestWithContext(l.ctx, http.MethodPost, path, bytes.NewReader(text)))
		if rec.Code != http.StatusServiceUnavailable && !w.strikes(w.chaos.callLost, name, "lost") {
			return rec.Code, nil
		}
	}
	return 0, errAway
}
