package forwarder

import (
	"context"

	"github.com/ThreeDotsLabs/watermill/message"
)

// BatchPublisher is a publisher that sends many messages without waiting for each. A publisher given
// to New that has this method is driven through it; any other Watermill publisher is called message
// by message.
//
// The interface names only standard and Watermill types, so that a broker package implements it
// without importing this one.
type BatchPublisher interface {
	message.Publisher

	// PublishBatch sends msgs[i] to topics[i], those of a topic and key in that order, and answers for each: nil means that the
	// broker has stored the message. It returns len(msgs) errors, always. It may be called
	// concurrently; the calls share no key, unless the publisher serves several routes, and then no key of
	// one topic.
	//
	// An error for which errors.As finds a Refusal with Refused() true is the message's own fault, and
	// counts as an attempt. Every other error says that the destination could not be reached or
	// that the outcome is not known; it counts nothing, and the message is sent again.
	//
	// When ctx ends, it returns soon, with an error for each message that was not confirmed.
	//
	// The messages are there to be sent: they cannot be waited for with Acked or Nacked, and their metadata is not to be
	// changed, of which further attempts are made.
	PublishBatch(ctx context.Context, topics []string, msgs []*message.Message) []error
}

// KeyOrdered is a BatchPublisher that may be given several messages of one key in one batch: it
// delivers them in order and, when one fails, none of the same key behind it.
type KeyOrdered interface {
	BatchPublisher
	// KeepsKeyOrder reports whether the promise above holds as configured.
	KeepsKeyOrder() bool
}

// Refusal is what a publisher's error implements to say that the broker refused this very message.
type Refusal interface {
	error
	// Refused is true if sending the same message again is expected to fail again.
	Refused() bool
	// Reason is a short code for the operator: no_route, too_large, encoding, channel_closed ...
	Reason() string
}
