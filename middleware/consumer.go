package middleware

import (
	"context"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace/dedup"
)

// refusedDelay is how long a message waits that cannot be handled because of the configuration.
const refusedDelay = 2 * time.Second

// consumer names the records of messages.
type consumer struct {
	name     string   // "" = the name of the router's handler
	handlers sync.Map // topic to the handler that serves it, where name is given
}

// key names the record of a message.
func (c *consumer) key(msg *message.Message) (dedup.Key, error) {
	key := dedup.Key{Consumer: c.name, MessageID: msg.UUID}
	if key.Consumer == "" {
		key.Consumer = message.HandlerNameFromCtx(msg.Context())
	}
	switch {
	case key.Consumer == "":
		return key, postponed(ErrNoConsumer, refusedDelay)
	case c.shared(msg.Context()):
		return key, postponed(ErrSharedConsumer, refusedDelay)
	case key.MessageID == "":
		return key, hopeless(ErrNoMessageID, "no_message_id")
	}
	return key, nil
}

// shared reports whether two handlers of one topic go by one configured name: the second would never
// run, since each message is done for it when it comes.
func (c *consumer) shared(ctx context.Context) bool {
	handler := message.HandlerNameFromCtx(ctx)
	if c.name == "" || handler == "" {
		return false
	}
	first, _ := c.handlers.LoadOrStore(message.SubscribeTopicFromCtx(ctx), handler)
	return first != handler
}
