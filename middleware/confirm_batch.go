package middleware

import (
	"context"
	"fmt"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace/internal/confirmation"
)

// batchPublisher is a publisher that sends many messages in one call and answers for each, as those of our
// broker packages do.
type batchPublisher interface {
	PublishBatch(ctx context.Context, topics []string, msgs []*message.Message) []error
}

// confirmFlights is how many calls of the publisher may be under way while messages wait for them: two, so that none waits
// for two of them. In the background, where nobody waits, it is one, and what gathers for backgroundLinger travels
// with it: the fewer messages, the less a confirmation costs.
const (
	confirmFlights   = 2
	backgroundLinger = 10 * time.Millisecond
)

// confirmBatches lets confirmations that are made at the same time travel together: those for one topic in one message.
// One that is alone departs at once, unless there is a linger; while as many calls as may be are under way, others gather.
type confirmBatches struct {
	pub     message.Publisher
	timeout time.Duration // of a call
	most    int           // calls at a time
	linger  time.Duration // before a call

	mu      sync.Mutex
	waiting []*confirmCall
	flights int
}

type confirmCall struct {
	topic  string
	msg    *message.Message
	landed func(error) // called once, unless it is forgotten
}

// publish returns when the confirmation is stored, or ctx ends.
func (b *confirmBatches) publish(ctx context.Context, topic string, msg *message.Message) error {
	done := make(chan error, 1)
	c := &confirmCall{topic, msg, func(err error) { done <- err }}
	b.add(c)
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		b.forget(c)
		return ctx.Err() // it may have been sent: to confirm twice does no harm
	}
}

func (b *confirmBatches) add(c *confirmCall) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.waiting = append(b.waiting, c)
	b.depart()
}

// forget keeps what nobody waits for any more from piling up behind a publisher that does not answer.
func (b *confirmBatches) forget(c *confirmCall) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if i := slices.Index(b.waiting, c); i >= 0 {
		b.waiting = slices.Delete(b.waiting, i, i+1)
	}
}

func (b *confirmBatches) depart() {
	if b.flights < b.most && len(b.waiting) > 0 {
		b.flights++
		go b.fly()
	}
}

// fly makes calls until nobody waits.
func (b *confirmBatches) fly() {
	for {
		if b.linger > 0 && !b.crowded() {
			time.Sleep(b.linger)
		} else {
			runtime.Gosched() // handlers that are about to end come along
		}
		flight := b.board()
		if len(flight) == 0 {
			return
		}
		b.carry(flight)
	}
}

// crowded reports whether a whole message of them waits already.
func (b *confirmBatches) crowded() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.waiting) >= confirmation.MaxJoint
}

// board takes as many as one call carries. If there are none, the flight is over.
func (b *confirmBatches) board() []*confirmCall {
	b.mu.Lock()
	defer b.mu.Unlock()
	said := make([]*message.Message, min(len(b.waiting), confirmation.MaxJoint))
	for i := range said {
		said[i] = b.waiting[i].msg
	}
	n := confirmation.Fit(said)
	flight := b.waiting[:n:n]
	b.waiting = b.waiting[n:]
	if n == 0 {
		b.flights--
	}
	return flight
}

// carry sends one message for each topic, in one call. It has the context of the last member, and as long as any of them.
func (b *confirmBatches) carry(flight []*confirmCall) {
	ctx, cancel := context.WithTimeout(flight[len(flight)-1].msg.Context(), b.timeout)
	defer cancel()
	var topics []string
	members := map[string][]*confirmCall{}
	for _, c := range flight {
		if members[c.topic] == nil {
			topics = append(topics, c.topic)
		}
		members[c.topic] = append(members[c.topic], c)
	}
	msgs := make([]*message.Message, len(topics))
	for i, topic := range topics {
		var said []*message.Message
		for _, c := range members[topic] {
			said = append(said, c.msg)
		}
		msgs[i] = confirmation.Join(said)
		msgs[i].SetContext(ctx)
	}
	errs := b.send(ctx, topics, msgs)
	for i, topic := range topics {
		for _, c := range members[topic] {
			c.landed(errs[i])
		}
	}
}

// send answers for each message. No handler's Recoverer is around it, so it is one itself.
func (b *confirmBatches) send(ctx context.Context, topics []string, msgs []*message.Message) (errs []error) {
	errs = make([]error, len(msgs))
	defer func() {
		if v := recover(); v != nil {
			for i := range errs {
				errs[i] = &PanicError{Value: v, Stack: debug.Stack()}
			}
		}
	}()
	batches, ok := b.pub.(batchPublisher)
	if !ok {
		for i, topic := range topics {
			if errs[i] = ctx.Err(); errs[i] == nil {
				errs[i] = b.pub.Publish(topic, msgs[i])
			}
		}
		return errs
	}
	answers := batches.PublishBatch(ctx, topics, msgs)
	for i := range errs {
		if i < len(answers) {
			errs[i] = answers[i]
		} else {
			errs[i] = fmt.Errorf("the publisher answered %d errors for %d messages", len(answers), len(msgs))
		}
	}
	return errs
}
