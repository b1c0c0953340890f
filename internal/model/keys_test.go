package model_test

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/internal/backoff"
	"github.com/millrace-go/millrace/internal/confirmation"
)

// keys are those with which confirmations are signed, and when the old one gives way to the new one: the producer
// hears of the new one, the consumers begin to use it, the producer forgets the old one.
type keys struct {
	old, new, wrong       []byte
	named, used, obsolete time.Duration // since the world began

	mu     sync.Mutex
	forged uint64 // that reached the producer, of the forger
	stale  uint64 // that reached it signed with the old key, when that may have been forgotten
}

func newKeys(named, used, obsolete time.Duration) *keys {
	key := func(c byte) []byte { return bytes.Repeat([]byte{c}, confirmation.MinKey) }
	return &keys{old: key('o'), new: key('n'), wrong: key('w'), named: named, used: used, obsolete: obsolete}
}

// atProducer are the keys that the producer knows.
func (k *keys) atProducer(age time.Duration) [][]byte {
	switch {
	case age < k.named:
		return [][]byte{k.old}
	case age < k.obsolete:
		return [][]byte{k.new, k.old}
	}
	return [][]byte{k.new}
}

// atConsumer is the key that a consumer signs with which starts now.
func (k *keys) atConsumer(age time.Duration) []byte {
	if age < k.used {
		return k.old
	}
	return k.new
}

// rotate has the producer learn and forget keys.
func (w *world) rotate(ctx context.Context) {
	for _, at := range []time.Duration{w.keys.named, w.keys.obsolete} {
		if !backoff.Sleep(ctx, at-time.Since(w.began)) {
			return
		}
		w.outbox.Confirming(w.confirming())
	}
}

// deployed is the context in which a consumer takes messages that started now: it is stopped when it is to have the
// new key.
func (w *world) deployed(ctx context.Context) (context.Context, context.CancelFunc) {
	if w.keys == nil || time.Since(w.began) >= w.keys.used {
		return context.WithCancel(ctx)
	}
	return context.WithDeadline(ctx, w.began.Add(w.keys.used))
}

const forgery = "forgery"

// forge is somebody who may publish to the topic of the confirmations, and has no key. He makes up words of both
// groups about all messages, with a key of his own, without, or with a signature that he has seen under another word.
func (w *world) forge(ctx context.Context) {
	for n := 1; backoff.Sleep(ctx, time.Duration(w.fate(2000, "forges", n))*time.Millisecond) && time.Since(w.began) < w.lasts; n++ {
		c := confirmation.Confirmation{
			ID: fmt.Sprint("m", 1+w.fate(w.messages, "forges about", n)), Group: groups[w.fate(len(groups), "forges for", n)],
			Outcome: confirmation.Done, Sending: w.fate(attempts+1, "forges an answer", n), At: time.Now(),
		}
		if w.fate(2, "forges a failure", n) == 0 {
			c.Outcome, c.Reason = confirmation.Failed, "forged"
		}
		switch w.fate(3, "forges with", n) {
		case 0:
			c = c.Sign(w.keys.wrong)
		case 1:
			seen := c
			seen.Outcome, seen.Reason = confirmation.Done, "seen"
			c.Signature = seen.Sign(w.keys.atConsumer(time.Since(w.began))).Signature
		}
		m, err := c.Message()
		require.NoError(w, err)
		m.Metadata[forgery] = "yes"
		w.broker.bring(producer, m, 0)
	}
}

// tells notes which confirmations the producer has to drop.
func (w *world) tells(msg *message.Message) {
	if w.keys == nil {
		return
	}
	w.keys.mu.Lock()
	defer w.keys.mu.Unlock()
	for _, c := range confirmation.ParseAll(msg.Payload, nil) {
		require.NoError(w, c.Err)
		switch {
		case msg.Metadata[forgery] != "":
			w.keys.forged++
		case time.Since(w.began) >= w.keys.obsolete && !c.SignedBy(w.keys.new):
			w.keys.stale++
		}
	}
}

// lookAtKeys checks that the producer has counted what it dropped.
func (w *world) lookAtKeys(wrong func(string, ...any)) {
	if w.keys == nil {
		if n := w.outbox.Forged(); n > 0 {
			wrong("nobody signs, and %d confirmations were dropped for that", n)
		}
		return
	}
	w.keys.mu.Lock()
	defer w.keys.mu.Unlock()
	if n := w.outbox.Forged(); n < w.keys.forged || n > w.keys.forged+w.keys.stale {
		wrong("%d forged confirmations came, and %d of an old key at most: %d were counted", w.keys.forged, w.keys.stale, n)
	}
}
