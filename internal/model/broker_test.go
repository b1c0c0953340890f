package model_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace/internal/backoff"
	"github.com/millrace-go/millrace/internal/confirmation"
	"github.com/millrace-go/millrace/internal/meta"
)

// broker keeps what it was given for each group that wants it, until the group has acknowledged it. It loses, doubles
// and delays copies of what is confirmed, and everything that a confirmation is.
type broker struct {
	w *world

	mu      sync.Mutex
	queues  map[string]chan *message.Message // by group
	groups  map[string][]string              // by topic
	tried   map[string]int                   // publishes, by message and sending
	stored  map[string]int                   // those that it kept
	excused map[string]int                   // those that may be more than one
	first   []string                         // ids, in the order in which they came first
	seen    map[string]bool
	copies  int // on their way, or with a consumer
}

func newBroker(w *world, groups map[string][]string) *broker {
	b := &broker{
		w: w, queues: map[string]chan *message.Message{}, groups: groups, tried: map[string]int{}, stored: map[string]int{},
		excused: map[string]int{}, seen: map[string]bool{},
	}
	for _, all := range groups {
		for _, g := range all {
			b.queues[g] = make(chan *message.Message, 10_000)
		}
	}
	return b
}

type refusal struct{}

func (refusal) Error() string  { return "model: refused" }
func (refusal) Refused() bool  { return true }
func (refusal) Reason() string { return "no_route" }

var errBehind = errors.New("model: behind one that failed")

// link is the broker as one process sees it.
type link struct {
	*broker
	life *life
}

func (l link) Close() error        { return nil }
func (l link) KeepsKeyOrder() bool { return l.w.ordered }

// Publish is for those who send one message, and have its answer as an error.
func (l link) Publish(topic string, msgs ...*message.Message) error {
	for _, m := range msgs {
		if err := l.word(topic, m); err != nil {
			return err
		}
	}
	return nil
}

// PublishBatch implements forwarder.BatchPublisher, for messages; and for confirmations, which are recognized by
// their topic.
func (l link) PublishBatch(ctx context.Context, topics []string, msgs []*message.Message) []error {
	errs := make([]error, len(msgs))
	failed := map[string]bool{}
	for i, m := range msgs {
		if topics[i] == confirmations || topics[i] == graveyard {
			errs[i] = l.word(topics[i], m)
			continue
		}
		key := m.Metadata[meta.Key]
		if l.w.ordered && failed[key] {
			errs[i] = errBehind
			continue
		}
		errs[i] = l.take(ctx, topics[i], m)
		failed[key] = key != "" && errs[i] != nil
	}
	return errs
}

// sending names one sending of a message.
func sending(m *message.Message) string {
	return fmt.Sprint(m.UUID, "/", confirmation.Answered(m.Metadata))
}

func (l link) take(ctx context.Context, topic string, m *message.Message) error {
	if _, err := l.life.step("publish"); err != nil {
		return err
	}
	id := sending(m)
	l.mu.Lock()
	l.tried[id]++
	n := l.tried[id]
	l.mu.Unlock()
	if w := l.w.fate(100, id, n, "takes"); w < 50 && !l.w.quiet {
		backoff.Sleep(ctx, time.Duration(w)*time.Millisecond)
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case l.life.over():
		return errDead
	case l.w.unroutable(m.UUID), l.w.strikes(l.w.chaos.refuses, id, n, "refused"):
		return refusal{}
	case l.w.strikes(l.w.chaos.unreached, id, n, "not reached"):
		return errAway
	}
	l.store(topic, id, m)
	if l.w.strikes(l.w.chaos.unanswered, id, n, "not answered") {
		l.excuse(id)
		return errAway
	}
	if _, err := l.life.step("answer"); err != nil { // dies with the answer on its way
		return err
	}
	return nil
}

func (b *broker) excuse(id string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.excused[id]++
}

func (b *broker) store(topic, id string, m *message.Message) {
	b.mu.Lock()
	b.stored[id]++
	n := b.stored[id]
	if !b.seen[m.UUID] {
		b.seen[m.UUID] = true
		b.first = append(b.first, m.UUID)
	}
	groups := b.groups[topic]
	b.mu.Unlock()
	for _, g := range groups {
		chaos := b.w.chaos
		if topic == plain {
			chaos.drops = 0
		}
		b.carry(g, m, chaos.drops, chaos.doubles, chaos.delays, fmt.Sprint(g, "/", id, "/", n))
	}
}

// carry brings a message to a group, or does not, or twice, or late.
func (b *broker) carry(group string, m *message.Message, drops, doubles, delays int, id string) {
	if b.w.strikes(drops, id, "dropped") {
		return
	}
	copies := 1
	if b.w.strikes(doubles, id, "doubled") {
		copies = 2
	}
	for n := range copies {
		wait := time.Duration(b.w.fate(20, id, n, "wait")) * time.Millisecond
		if b.w.strikes(delays, id, n, "delayed") {
			wait = time.Duration(b.w.fate(20_000, id, n, "how late")) * time.Millisecond
		}
		b.bring(group, m, wait)
	}
}

// bring puts a copy into a queue, after a while.
func (b *broker) bring(group string, m *message.Message, wait time.Duration) {
	b.mu.Lock()
	b.copies++
	b.mu.Unlock()
	time.AfterFunc(wait, func() {
		other := message.NewMessage(m.UUID, m.Payload)
		for name, value := range m.Metadata {
			other.Metadata[name] = value
		}
		b.queues[group] <- other
	})
}

// gone notes that a copy was acknowledged.
func (b *broker) gone() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.copies--
}

func (b *broker) empty() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.copies == 0
}

// word takes a confirmation, or a message that was given up.
func (l link) word(topic string, m *message.Message) error {
	n, err := l.life.step("word " + m.UUID)
	if err != nil {
		return err
	}
	id := fmt.Sprint(l.life.name, "/", topic, "/", m.UUID, "/", n)
	if !l.w.quiet { // others gather meanwhile
		backoff.Sleep(m.Context(), time.Duration(l.w.fate(500, id, "takes"))*time.Millisecond)
	}
	if l.w.strikes(l.w.chaos.unreached, id, "not reached") {
		return errAway
	}
	if topic == graveyard {
		l.w.gaveUp(l.life, m)
		return nil
	}
	l.w.confirms(m)
	c := l.w.chaos
	l.carry(producer, m, c.wordsDropped, c.wordsDoubled, c.wordsDelayed, id)
	return nil
}

// consume takes what comes for a group until ctx ends, and handles each message in a goroutine of its own.
func (b *broker) consume(ctx context.Context, l *life, group string, handle func(msg *message.Message) error) {
	var work sync.WaitGroup
	defer work.Wait()
	slots := make(chan struct{}, 8)
	for {
		select {
		case <-ctx.Done():
			return
		case slots <- struct{}{}:
		}
		select {
		case <-ctx.Done():
			return
		case m := <-b.queues[group]:
			work.Go(func() {
				defer func() { <-slots }()
				b.deliver(l, group, m, handle)
			})
		}
	}
}

func (b *broker) deliver(l *life, group string, m *message.Message, handle func(msg *message.Message) error) {
	given := message.NewMessage(m.UUID, m.Payload)
	for name, value := range m.Metadata {
		given.Metadata[name] = value
	}
	ctx, cancel := context.WithCancel(l.ctx)
	defer cancel()
	given.SetContext(ctx)
	err := handle(given)
	if _, gone := l.step("ack"); err != nil || gone != nil {
		b.w.window(group, m.UUID)
		b.bring(group, m, 200*time.Millisecond)
	}
	b.gone()
}
