package middleware

import (
	"context"
	"fmt"
	"sync"

	"github.com/ThreeDotsLabs/watermill/message"
)

// batchPublisher is a publisher that sends many messages in one call and answers for each, as those of our
// broker packages do.
type batchPublisher interface {
	PublishBatch(ctx context.Context, topics []string, msgs []*message.Message) []error
}

// confirmFlights is how many calls of the publisher may be under way, confirmBatch how many
// confirmations one of them takes.
const (
	confirmFlights = 2
	confirmBatch   = 256
)

// confirmBatches lets confirmations that are made at the same time share calls of the publisher. One that
// is alone departs at once; while confirmFlights calls are under way, others gather. There is no timer.
type confirmBatches struct {
	pub message.Publisher

	mu      sync.Mutex
	waiting []*confirmCall
	flights int
}

type confirmCall struct {
	topic string
	msg   *message.Message
	done  chan struct{}
	err   error // read after done
}

// publish returns when the confirmation is stored, or ctx ends.
func (b *confirmBatches) publish(ctx context.Context, topic string, msg *message.Message) error {
	batches, ok := b.pub.(batchPublisher)
	if !ok {
		return b.pub.Publish(topic, msg)
	}
	c := &confirmCall{topic: topic, msg: msg, done: make(chan struct{})}
	b.mu.Lock()
	b.waiting = append(b.waiting, c)
	b.depart(batches)
	b.mu.Unlock()
	select {
	case <-c.done:
		return c.err
	case <-ctx.Done():
		return ctx.Err() // it may have been sent: to confirm twice does no harm
	}
}

func (b *confirmBatches) depart(pub batchPublisher) {
	for b.flights < confirmFlights && len(b.waiting) > 0 {
		n := min(len(b.waiting), confirmBatch)
		batch := b.waiting[:n:n]
		b.waiting = b.waiting[n:]
		b.flights++
		go b.fly(pub, batch)
	}
}

// fly sends one batch. It has the context of its last member, who waits the longest.
func (b *confirmBatches) fly(pub batchPublisher, batch []*confirmCall) {
	topics, msgs := make([]string, len(batch)), make([]*message.Message, len(batch))
	for i, c := range batch {
		topics[i], msgs[i] = c.topic, c.msg
	}
	errs := pub.PublishBatch(msgs[len(msgs)-1].Context(), topics, msgs)
	for i, c := range batch {
		if i < len(errs) {
			c.err = errs[i]
		} else {
			c.err = fmt.Errorf("the publisher answered %d errors for %d messages", len(errs), len(batch))
		}
		close(c.done)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.flights--
	b.depart(pub)
}
