package outbox

import (
	"context"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace/internal/txn"
)

// Publisher is the outbox as a message.Publisher, for cqrs.EventBus, decorators and whatever else
// publishes through Watermill. It finds the transaction in each message's context: those of one call
// may belong to different ones. Close does nothing.
func (b *Box) Publisher() message.Publisher { return publisher{b} }

type publisher struct{ box *Box }

// Publish checks all messages before the first one counts, and is otherwise like Box.Publish with each
// message's context.
func (p publisher) Publish(topic string, msgs ...*message.Message) error {
	entries, err := p.box.encoder.encode(func(i int) context.Context { return msgs[i].Context() }, topic, msgs)
	if err != nil {
		return err
	}
	for start := 0; start < len(msgs); {
		end := start + 1
		for end < len(msgs) && p.together(msgs[start], msgs[end]) {
			end++
		}
		if err := p.box.accept(msgs[start].Context(), entries[start:end]); err != nil {
			return err
		}
		start = end
	}
	return nil
}

// together reports whether two messages belong to the same transaction, or both to none.
func (p publisher) together(a, b *message.Message) bool {
	txA, okA := txn.From(a.Context(), p.box.pool)
	txB, okB := txn.From(b.Context(), p.box.pool)
	return okA == okB && txA == txB
}

// Close implements message.Publisher.
func (p publisher) Close() error { return nil }
