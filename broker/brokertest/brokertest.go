// Package brokertest is the contract that every broker of millrace keeps, as tests: each rule is a
// sentence, and each is tried against a real broker.
//
//	func TestTheContractHolds(t *testing.T) {
//		brokertest.Run(t, brokertest.Broker{NewPublisher: ..., NewSubscriber: ...})
//	}
//
// It adds to Watermill's own suite, github.com/ThreeDotsLabs/watermill/pubsub/tests, what millrace
// promises beyond it: an answer for each message, refusals told from outages, order per key, an
// orderly end. A broker passes both.
package brokertest

import (
	"context"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

// BatchPublisher is what a publisher under test must be. The forwarder declares the same interface,
// and says what it promises.
type BatchPublisher interface {
	message.Publisher
	PublishBatch(ctx context.Context, topics []string, msgs []*message.Message) []error
}

// Broker makes publishers and subscribers of one broker for the suite.
//
// The constructors fail the test themselves when they cannot make one. The suite closes everything
// that it asked for; closing twice must be harmless.
type Broker struct {
	// NewPublisher makes a publisher that refuses payloads above MaxPayload.
	NewPublisher func(t *testing.T) BatchPublisher

	// MaxPayload is the limit, in bytes, of what NewPublisher makes. A small one keeps the test quick.
	MaxPayload int

	// NewSubscriber makes a subscriber of a group as settings ask. Each group gets every message
	// of a topic once; subscribers of one group share them. If it has a SubscribeInitialize, the suite
	// calls it before the first publish.
	NewSubscriber func(t *testing.T, settings Settings) message.Subscriber

	// Unreachable makes a publisher for an address where no broker answers.
	Unreachable func(t *testing.T) BatchPublisher

	// Unroutable is a topic to which NewPublisher's publisher can reach nobody, so that its messages
	// are refused. Nil if the broker knows no such thing.
	Unroutable func(t *testing.T) string

	// WriteMalformed writes entries to the topic that no Watermill publisher would write, each wrong in
	// another way, and returns how many. It is called when a group of the topic exists.
	WriteMalformed func(t *testing.T, topic string) int
}

// Settings are what the suite asks of a subscriber.
type Settings struct {
	// Group names the consumers that share the messages.
	Group string

	// Concurrency is how many messages may be handed out and not yet acknowledged. With 1 the
	// messages come strictly one after the other.
	Concurrency int

	// CloseTimeout is how long handlers may go on after the end. 0: it does not matter.
	CloseTimeout time.Duration

	// The suite further expects a first delay after a nack between 10 and 100 ms.
}

// Run tries every rule, for publishers and for subscribers.
func Run(t *testing.T, b Broker) {
	t.Run("publisher", func(t *testing.T) { runRules(t, b, publisherRules()) })
	t.Run("subscriber", func(t *testing.T) { runRules(t, b, subscriberRules()) })
}

// rule is one sentence of the contract and the test that tries it.
type rule struct {
	sentence string
	try      func(s *scene)
	applies  func(b Broker) bool // nil: always
}

func runRules(t *testing.T, b Broker, rules []rule) {
	for _, r := range rules {
		if r.applies != nil && !r.applies(b) {
			continue
		}
		t.Run(r.sentence, func(t *testing.T) {
			t.Parallel()
			r.try(newScene(t, b))
		})
	}
}
