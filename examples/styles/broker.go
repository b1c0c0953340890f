package main

import (
	"errors"
	"sync"

	"github.com/ThreeDotsLabs/watermill/message"
)

// broker is a message.Publisher that fails as brokers do, at the first attempt of an order.
type broker struct {
	mu       sync.Mutex
	attempts map[string]int
	stored   map[string]int // how often it has each message
	faults   map[string]fault
}

func newBroker(orders int) *broker {
	b := &broker{attempts: map[string]int{}, stored: map[string]int{}, faults: map[string]fault{}}
	for n := range orders {
		b.faults[id(n)] = faultOf(n)
	}
	return b
}

var (
	errAway = errors.New("the broker is away")
	errLost = errors.New("no answer from the broker")
)

// Publish implements message.Publisher.
func (b *broker) Publish(_ string, msgs ...*message.Message) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, m := range msgs {
		b.attempts[m.UUID]++
		first := b.attempts[m.UUID] == 1
		if first && b.faults[m.UUID] == brokerAway {
			return errAway
		}
		b.stored[m.UUID]++
		if first && b.faults[m.UUID] == answerLost {
			return errLost
		}
	}
	return nil
}

// Close implements message.Publisher.
func (b *broker) Close() error { return nil }

func (b *broker) has(id string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.stored[id]
}
