package forwarder

import (
	"context"
	"errors"
	"maps"
	"sync"

	"github.com/ThreeDotsLabs/watermill/message"
)

// plain drives a Watermill publisher message by message.
//
// Its errors do not say whose fault they are. One counts as the message's own if another message got
// through in the same call, or since this message failed the last time; if nothing gets through, the
// destination is taken to be down, and no attempt is counted.
type plain struct {
	message.Publisher

	mu     sync.Mutex
	passed uint64            // messages that got through
	failed map[string]uint64 // id of a message that failed -> passed at that time
}

const (
	// plainPatience is the number of errors in a row, without a success, after which the rest of a
	// call is not tried.
	plainPatience = 3
	// plainMemory bounds the messages remembered as failed.
	plainMemory = 10_000
)

var errNotTried = errors.New("forwarder: not tried: the messages before it did not get through")

func newPlain(pub message.Publisher) *plain {
	return &plain{Publisher: pub, failed: map[string]uint64{}}
}

// PublishBatch implements BatchPublisher.
func (p *plain) PublishBatch(ctx context.Context, topics []string, msgs []*message.Message) []error {
	errs := sameError(errNotTried, len(msgs))
	through, failures := 0, 0
	for i, msg := range msgs {
		if ctx.Err() != nil {
			errs[i] = ctx.Err()
			continue
		}
		if through == 0 && failures == plainPatience {
			break
		}
		if errs[i] = p.Publish(topics[i], acknowledgeable(msg)); errs[i] == nil {
			through++
		} else {
			failures++
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.passed += uint64(through)
	for i, msg := range msgs {
		switch err := errs[i]; {
		case err == nil:
			delete(p.failed, msg.UUID)
		case errors.Is(err, errNotTried), ctx.Err() != nil && errors.Is(err, ctx.Err()):
		default:
			errs[i] = p.blame(msg.UUID, err, through > 0)
		}
	}
	return errs
}

// acknowledgeable is the message for a publisher that may hand it to somebody in this process and wait until it
// is acknowledged, or change the metadata.
func acknowledgeable(msg *message.Message) *message.Message {
	with := message.NewMessageWithContext(msg.Context(), msg.UUID, msg.Payload)
	with.Metadata = maps.Clone(msg.Metadata)
	return with
}

func (p *plain) blame(id string, err error, others bool) error {
	before, again := p.failed[id]
	if len(p.failed) >= plainMemory {
		clear(p.failed)
	}
	p.failed[id] = p.passed
	if others || again && p.passed > before {
		return plainRefusal{err}
	}
	return err
}

// plainRefusal is an error of a publisher that other messages passed.
type plainRefusal struct{ error }

func (plainRefusal) Refused() bool   { return true }
func (plainRefusal) Reason() string  { return "publish_error" }
func (r plainRefusal) Unwrap() error { return r.error }
