package model_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/dedup"
	"github.com/millrace-go/millrace/forwarder"
	"github.com/millrace-go/millrace/internal/backoff"
	"github.com/millrace-go/millrace/internal/txn"
	"github.com/millrace-go/millrace/middleware"
	"github.com/millrace-go/millrace/outbox"
)

// attempts is how often an unconfirmed message is sent.
const attempts = 4

// live runs a process, again and again, until ctx ends.
func (w *world) live(ctx context.Context, work *sync.WaitGroup, party string, run func(l *life)) {
	work.Go(func() {
		for n := 1; ctx.Err() == nil; n++ {
			l := w.born(ctx, party, n)
			run(l)
			l.cancel()
			backoff.Sleep(ctx, time.Duration(100+w.fate(5000, party, n, "restarts"))*time.Millisecond)
		}
	})
}

// box is the outbox in the producer's code.
func (w *world) box() *outbox.Box {
	box, err := outbox.New(w.business, outbox.Config{Policies: []outbox.Policy{{
		Topics: []string{orders}, After: outbox.AwaitConfirmation, Groups: groups,
		Deadline: w.deadline, MaxAttempts: attempts, MaxAge: 10 * time.Minute,
	}}})
	require.NoError(w, err)
	return box
}

var errBusiness = errors.New("model: the business changed its mind")

// produce commits messages, one or two in a transaction, until all have been tried.
func (w *world) produce(ctx context.Context, work *sync.WaitGroup, box *outbox.Box) (done chan struct{}) {
	done = make(chan struct{})
	var mu sync.Mutex
	var writers sync.WaitGroup
	next := 0
	for n := range 3 {
		writers.Go(func() {
			for life := 1; ; life++ {
				l := w.born(ctx, fmt.Sprint("writer", n), life)
				for !l.over() && ctx.Err() == nil {
					mu.Lock()
					next++
					i := next
					mu.Unlock()
					if i > w.messages {
						l.cancel()
						return
					}
					w.transaction(l, box, i)
					backoff.Sleep(l.ctx, time.Duration(w.fate(int(w.lasts/time.Millisecond)*2/w.messages+1, "pause", i))*time.Millisecond)
				}
				l.cancel()
				if ctx.Err() != nil {
					return
				}
			}
		})
	}
	work.Go(func() { writers.Wait(); close(done) })
	return done
}

// transaction is one of the producer's.
func (w *world) transaction(l *life, box *outbox.Box, i int) {
	topic, key := orders, ""
	if w.fate(3, "topic", i) == 0 {
		topic = plain
	}
	if w.fate(2, "keyed", i) == 0 {
		key = fmt.Sprint("k", w.fate(3, "key", i))
	}
	id := fmt.Sprint("m", i)
	err := millrace.InTx(l.ctx, w.business, func(ctx context.Context, tx *txn.Tx) error {
		if key != "" {
			if _, err := tx.Exec(ctx, lockRow, key); err != nil {
				return err
			}
		}
		if err := box.Publish(ctx, topic, outbox.WithKey(message.NewMessage(id, []byte("payload of "+id)), key)); err != nil {
			return err
		}
		if w.fate(3, "two", i) == 0 {
			if err := box.Publish(ctx, topic, outbox.WithKey(message.NewMessage(id+"b", []byte("payload of "+id+"b")), key)); err != nil {
				return err
			}
		}
		if w.fate(6, "rolled back", i) == 0 {
			return errBusiness
		}
		return millrace.AfterCommit(ctx, func(context.Context) error { w.hook(id); return nil })
	})
	var unknown *millrace.UnknownOutcomeError
	w.mu.Lock()
	defer w.mu.Unlock()
	_, there := w.sequence[id]
	if err == nil && !there {
		w.Errorf("seed %d: %s: InTx said committed, and it is not", w.chaos.seed, id)
	}
	if err != nil && !errors.As(err, &unknown) && there {
		w.Errorf("seed %d: %s: InTx said %v, and it is committed", w.chaos.seed, id, err)
	}
}

// source is what a forwarder works on.
type source struct {
	store  *store
	listen *outbox.Box // nil: it polls
}

func (s source) Store() outbox.Store { return s.store }

func (s source) Subscribe() (*outbox.Wake, func()) {
	if s.listen == nil {
		return nil, func() {}
	}
	return s.listen.Subscribe()
}

func (w *world) forward(l *life, box *outbox.Box) {
	if !w.wakes {
		box = nil
	}
	fwd, err := forwarder.New(source{&store{w.outbox.Process(), l}, box}, link{w.broker, l}, forwarder.Config{
		Lease: 4 * time.Second, PublishTimeout: 2 * time.Second, MaxAttempts: 4,
		RetryBase: 200 * time.Millisecond, RetryMax: 5 * time.Second, BatchRows: 5, Batches: 2,
	})
	require.NoError(w, err)
	_ = fwd.Run(l.ctx) // what it says about its end is of no interest: it is dead
}

// confirmed is the part of the producer that hears the confirmations: one by one, also those that travelled together.
func (w *world) confirmed(l *life) {
	w.broker.consume(l.ctx, l, producer, func(msg *message.Message) error {
		var said []json.RawMessage
		if json.Unmarshal(msg.Payload, &said) != nil { // one alone is no array
			said = []json.RawMessage{json.RawMessage(msg.Payload)}
		}
		for _, one := range said {
			m := message.NewMessage(msg.UUID, message.Payload(one))
			m.Metadata = msg.Metadata
			m.SetContext(msg.Context())
			w.tells(m) // now: the keys may change between two of them
			if err := w.outbox.Confirmations(m); err != nil {
				return err
			}
		}
		return nil
	})
}

// consume is a consumer of a group, with the chain that is recommended.
func (w *world) consume(l *life, group string) {
	to := link{w.broker, l}
	cfg := middleware.Config{
		Retry:   middleware.RetryConfig{MaxAttempts: 2, InitialDelay: 100 * time.Millisecond},
		Poison:  middleware.PoisonConfig{Publisher: to, Topic: graveyard},
		Confirm: middleware.ConfirmConfig{Group: group, Publisher: to},
		Timeout: 5 * time.Second,
	}
	taking, stop := w.deployed(l.ctx)
	defer stop()
	if w.keys != nil {
		cfg.Confirm.Key = w.keys.atConsumer(time.Since(w.began))
	}
	handle := func(msg *message.Message) error {
		if _, err := l.step("effect"); err != nil {
			return err
		}
		w.effect(group, msg.UUID)
		return nil
	}
	if group == withInbox {
		db := w.consumers
		inbox, err := dedup.NewInbox(db, dedup.InboxConfig{})
		require.NoError(w, err)
		cfg.Transactional, err = middleware.Transactional(db, inbox, middleware.TransactionalConfig{Consumer: group})
		require.NoError(w, err)
		handle = func(msg *message.Message) error {
			return millrace.InTx(msg.Context(), db, func(ctx context.Context, tx *txn.Tx) error {
				_, err := tx.Exec(ctx, insertEffect, msg.UUID)
				return err
			}, millrace.Mandatory())
		}
	} else {
		cfg.Dedup = records{w.records, l}
		cfg.Idempotent = middleware.IdempotentConfig{Consumer: group, Lease: 10 * time.Second, MaxClaims: 1000}
	}
	chain, err := middleware.Recommended(cfg)
	require.NoError(w, err)
	h := message.HandlerFunc(func(msg *message.Message) ([]*message.Message, error) {
		return nil, w.call(l, group, msg, handle)
	})
	for i := len(chain) - 1; i >= 0; i-- {
		h = chain[i](h)
	}
	w.broker.consume(taking, l, group, func(msg *message.Message) error {
		_, err := h(msg)
		return err
	})
}

var errHandler = errors.New("model: the handler failed")

// call is the user's handler.
func (w *world) call(l *life, group string, msg *message.Message, handle func(*message.Message) error) error {
	n, err := l.step("call " + msg.UUID)
	if err != nil {
		return err
	}
	if !w.quiet {
		backoff.Sleep(msg.Context(), time.Duration(w.fate(2000, l.name, msg.UUID, n, "takes"))*time.Millisecond)
	}
	if !w.repaired() && w.fate(1000, group, msg.UUID, "broken") < w.chaos.handlerBroken && !w.quiet {
		return errHandler
	}
	if w.strikes(w.chaos.handlerFails, l.name, msg.UUID, n, "fails") {
		return errHandler
	}
	return handle(msg)
}

// records is the store of what was handled, as one process sees it.
type records struct {
	dedup.Store
	life *life
}

func (r records) ask(ctx context.Context, op string, key dedup.Key) error {
	began := time.Now()
	err := r.life.asks(ctx, op)
	if err != nil || time.Since(began) > time.Second {
		r.life.w.window(withRecords, key.MessageID)
	}
	return err
}

func (r records) reply(op string, key dedup.Key) error {
	err := r.life.hears(op)
	if err != nil {
		r.life.w.window(withRecords, key.MessageID)
	}
	return err
}

func (r records) Claim(ctx context.Context, key dedup.Key, req dedup.Request) (dedup.Answer, error) {
	if err := r.ask(ctx, "records: claim", key); err != nil {
		return dedup.Answer{}, err
	}
	a, err := r.Store.Claim(ctx, key, req)
	return a, errors.Join(err, r.reply("records: claim", key))
}

func (r records) Renew(ctx context.Context, key dedup.Key, owner string, lease time.Duration) (bool, error) {
	if err := r.ask(ctx, "records: renew", key); err != nil {
		return false, err
	}
	ok, err := r.Store.Renew(ctx, key, owner, lease)
	return ok, errors.Join(err, r.reply("records: renew", key))
}

func (r records) Done(ctx context.Context, key dedup.Key, owner string, result []byte, ttl time.Duration) (dedup.Mark, error) {
	if err := r.ask(ctx, "records: done", key); err != nil {
		return 0, err
	}
	m, err := r.Store.Done(ctx, key, owner, result, ttl)
	return m, errors.Join(err, r.reply("records: done", key))
}

func (r records) Release(ctx context.Context, key dedup.Key, owner string, fresh bool) error {
	if err := r.ask(ctx, "records: release", key); err != nil {
		return err
	}
	return errors.Join(r.Store.Release(ctx, key, owner, fresh), r.reply("records: release", key))
}

// operate is what a person does about the dead: look now and then, and replay.
func (w *world) operate(ctx context.Context) {
	for n := 1; backoff.Sleep(ctx, 5*time.Second); n++ {
		for _, d := range w.outbox.Dead() {
			if d.Why.Reason == outbox.ReasonFailed && (w.repaired() || w.fate(2, "replays", n, d.ID) == 0) {
				w.mu.Lock()
				w.replays++
				w.mu.Unlock()
				w.outbox.Replay(d.ID)
			}
		}
	}
}
