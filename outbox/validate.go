package outbox

import (
	"context"

	"github.com/ThreeDotsLabs/watermill/message"
)

// Validate checks messages as Publish does, and stores nothing: for what keeps a message for a while
// before it publishes it. Propagators see each message's own context.
func (b *Box) Validate(topic string, msgs ...*message.Message) error {
	_, err := b.encoder.encode(func(i int) context.Context { return msgs[i].Context() }, topic, msgs)
	return err
}
