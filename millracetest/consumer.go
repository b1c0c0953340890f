package millracetest

import (
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace/internal/delivery"
	"github.com/millrace-go/millrace/internal/meta"
)

// Faults are what a Broker does to a consumer that a real broker may do, and seldom does in a test. The
// zero value is a broker on its best day.
type Faults struct {
	// Copies is how often each message is delivered beside the first time.
	Copies int
	// Reorder delivers what is waiting in random order, by Seed, also within a key. 0 is a seed like any.
	Reorder bool
	Seed    uint64
	// LostAcks is how many acknowledgements of each group are lost: the handler is through, and the message
	// comes again, as if the process had died before the acknowledgement.
	LostAcks int
	// AckDeadline, if set, is how long a message may be with a consumer before it is delivered a second
	// time, while the first still has it.
	AckDeadline time.Duration
	// NackDelay is how long a nacked message waits before it comes again, if the middlewares do not ask
	// for longer. Default 1 ms.
	NackDelay time.Duration
}

// Broker is a broker in the process, for tests of consumers: a publisher, and subscribers in groups. Each
// group gets every message of a topic, also those from before it was there; the subscribers of a group
// share them. A message comes again until it is acknowledged. Messages of one key (see
// outbox.WithKey) come one after the other, in order. Up to 10 messages are with a subscriber at a time.
//
//	broker := millracetest.NewBroker(millracetest.Faults{Copies: 1, Reorder: true})
//	router.AddConsumerHandler("billing", "orders", broker.Subscriber("billing"), handle)
//	...
//	err := broker.Publish("orders", msg)
//	err = broker.Settle(ctx)
//	// every message was handled
type Broker struct {
	faults Faults

	mu      sync.Mutex
	random  *rand.Rand
	changed chan struct{} // closed and made anew when something happened
	closed  bool
	topics  map[string][]*message.Message
	groups  map[groupName]*group
}

type groupName struct{ topic, name string }

// group is what a group has of a topic.
type group struct {
	ready    []*message.Message
	inHand   int // with a consumer, or waiting after a nack
	busy     map[string]bool
	lostAcks int
}

var (
	_ message.Publisher  = (*Broker)(nil)
	_ message.Subscriber = (*member)(nil)
)

// ErrClosed is returned by what was closed.
var ErrClosed = errors.New("millracetest: closed")

// NewBroker returns a broker with the faults. It starts nothing.
func NewBroker(f Faults) *Broker {
	return &Broker{faults: f, random: rand.New(rand.NewPCG(f.Seed, 0)), changed: make(chan struct{}),
		topics: map[string][]*message.Message{}, groups: map[groupName]*group{}}
}

// Publish implements message.Publisher. The messages are copied.
func (b *Broker) Publish(topic string, msgs ...*message.Message) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return ErrClosed
	}
	for _, m := range msgs {
		m = m.Copy()
		m.Payload = append(message.Payload{}, m.Payload...)
		b.topics[topic] = append(b.topics[topic], m)
		for name, g := range b.groups {
			if name.topic == topic {
				g.add(m, b.faults.Copies)
			}
		}
	}
	b.tell()
	return nil
}

func (g *group) add(m *message.Message, copies int) {
	for range copies + 1 {
		g.ready = append(g.ready, m)
	}
}

// Close refuses further messages and ends all subscriptions.
func (b *Broker) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	b.tell()
	return nil
}

// tell wakes whoever waits for a change.
func (b *Broker) tell() {
	close(b.changed)
	b.changed = make(chan struct{})
}

// Settle waits until all that was published has been acknowledged by every group that there is, and by one
// at least, and nothing is in hand. Its error is that of ctx.
func (b *Broker) Settle(ctx context.Context) error {
	for {
		b.mu.Lock()
		changed, quiet := b.changed, true
		consumed := map[string]bool{}
		for name, g := range b.groups {
			consumed[name.topic] = true
			quiet = quiet && len(g.ready) == 0 && g.inHand == 0
		}
		for topic := range b.topics {
			quiet = quiet && consumed[topic]
		}
		b.mu.Unlock()
		if quiet {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Subscriber returns a subscriber of a group. It may subscribe to any number of topics.
func (b *Broker) Subscriber(group string) message.Subscriber {
	return &member{broker: b, group: group, closing: make(chan struct{})}
}

type member struct {
	broker  *Broker
	group   string
	once    sync.Once
	closing chan struct{}
	running sync.WaitGroup
}

// SubscribeInitialize makes the group, which from then on gets messages. It is not needed: a group gets
// earlier ones too.
func (m *member) SubscribeInitialize(topic string) error {
	m.broker.mu.Lock()
	defer m.broker.mu.Unlock()
	m.broker.open(groupName{topic, m.group})
	return nil
}

func (b *Broker) open(name groupName) *group {
	g := b.groups[name]
	if g == nil {
		g = &group{busy: map[string]bool{}}
		for _, m := range b.topics[name.topic] {
			g.add(m, b.faults.Copies)
		}
		b.groups[name] = g
	}
	return g
}

// Subscribe implements message.Subscriber.
func (m *member) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	b := m.broker
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, ErrClosed
	}
	g := b.open(groupName{topic, m.group})
	out := make(chan *message.Message)
	m.running.Go(func() {
		defer close(out)
		m.deliver(ctx, g, out)
	})
	return out, nil
}

// deliver hands out the messages of the group until ctx ends or the member is closed, and waits for handlers.
func (m *member) deliver(ctx context.Context, g *group, out chan<- *message.Message) {
	var handlers sync.WaitGroup
	defer handlers.Wait()
	slots := make(chan struct{}, 10)
	for {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return
		case <-m.closing:
			return
		}
		sent := m.next(ctx, g)
		if sent == nil {
			return
		}
		msg := sent.Copy()
		msg.Payload = append(message.Payload{}, sent.Payload...)
		handling, done := context.WithCancel(context.WithoutCancel(ctx))
		msg.SetContext(handling)
		handed := false
		select {
		case out <- msg:
			handed = true
		case <-ctx.Done():
		case <-m.closing:
		}
		if !handed {
			done()
			m.broker.back(g, sent, 0)
			return
		}
		handlers.Go(func() {
			defer done()
			defer func() { <-slots }()
			m.broker.await(g, sent, msg)
		})
	}
}

// Close implements message.Subscriber. It waits for handlers.
func (m *member) Close() error {
	m.once.Do(func() { close(m.closing) })
	m.running.Wait()
	return nil
}

// next waits for a message of the group, or returns nil at the end.
func (m *member) next(ctx context.Context, g *group) *message.Message {
	b := m.broker
	for {
		b.mu.Lock()
		changed, closed := b.changed, b.closed
		msg := b.choose(g)
		b.mu.Unlock()
		if msg != nil || closed {
			return msg
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		case <-m.closing:
			return nil
		}
	}
}

// choose takes a message whose key nobody has out of those that are ready.
func (b *Broker) choose(g *group) *message.Message {
	var free []int
	seen := map[string]bool{}
	for i, m := range g.ready {
		key := m.Metadata.Get(meta.Key)
		if !b.faults.Reorder && key != "" && (g.busy[key] || seen[key]) {
			continue
		}
		seen[key] = true
		free = append(free, i)
		if !b.faults.Reorder {
			break
		}
	}
	if len(free) == 0 {
		return nil
	}
	i := free[b.random.IntN(len(free))]
	m := g.ready[i]
	g.ready = append(g.ready[:i:i], g.ready[i+1:]...)
	g.inHand++
	g.busy[m.Metadata.Get(meta.Key)] = true
	return m
}

// await waits for what the consumer says of the message.
func (b *Broker) await(g *group, sent, msg *message.Message) {
	var late <-chan time.Time
	if b.faults.AckDeadline > 0 {
		timer := time.NewTimer(b.faults.AckDeadline)
		defer timer.Stop()
		late = timer.C
	}
	for {
		select {
		case <-msg.Acked():
			b.acked(g, sent)
			return
		case <-msg.Nacked():
			b.back(g, sent, cmp.Or(delivery.NackDelay(msg), b.faults.NackDelay, time.Millisecond))
			return
		case <-late:
			late = nil
			b.mu.Lock()
			g.ready = append(g.ready, sent)
			g.busy[sent.Metadata.Get(meta.Key)] = false
			b.tell()
			b.mu.Unlock()
		}
	}
}

func (b *Broker) acked(g *group, sent *message.Message) {
	b.mu.Lock()
	defer b.mu.Unlock()
	g.inHand--
	g.busy[sent.Metadata.Get(meta.Key)] = false
	if g.lostAcks < b.faults.LostAcks {
		g.lostAcks++
		g.ready = append([]*message.Message{sent}, g.ready...)
	}
	b.tell()
}

// back has a message come again, before all others.
func (b *Broker) back(g *group, sent *message.Message, after time.Duration) {
	if after > 0 {
		time.AfterFunc(after, func() { b.back(g, sent, 0) })
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	g.inHand--
	g.busy[sent.Metadata.Get(meta.Key)] = false
	g.ready = append([]*message.Message{sent}, g.ready...)
	b.tell()
}
