package rabbitmq

import (
	"errors"
	"fmt"
	"maps"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-amqp/v3/pkg/amqp"
	"github.com/ThreeDotsLabs/watermill/message"
	amqp091 "github.com/rabbitmq/amqp091-go"

	"github.com/millrace-go/millrace/internal/meta"
)

// decode makes a message of whatever there is in a queue: an entry that nobody can read must go
// where the others go, to the handler and from there to the poison queue, or it would stand in the way
// for ever.
func decode(marshaler amqp.Marshaler, d amqp091.Delivery) *message.Message {
	if _, ours := d.Headers[returnHeader]; ours {
		d.Headers = maps.Clone(d.Headers)
		delete(d.Headers, returnHeader)
	}
	msg, err := unmarshal(marshaler, d)
	if err != nil {
		// Those of watermill-amqp give up at headers that are no text, such as the ones that the broker
		// itself adds when it delivers again.
		d.Headers = textOnly(d.Headers)
		msg, err = unmarshal(marshaler, d)
	}
	if err != nil {
		const bound = 500
		msg, _ = Marshaler{}.Unmarshal(d) // never fails
		msg.Metadata.Set(meta.Reason, meta.Malformed)
		msg.Metadata.Set(meta.Error, fmt.Sprintf("%.*s", bound, err.Error()))
	}
	if msg.Metadata == nil {
		msg.Metadata = message.Metadata{}
	}
	if msg.UUID == "" {
		msg.UUID = d.MessageId
	}
	if msg.UUID == "" {
		msg.UUID = watermill.NewUUID()
	}
	return msg
}

func unmarshal(marshaler amqp.Marshaler, d amqp091.Delivery) (msg *message.Message, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	msg, err = marshaler.Unmarshal(d)
	if err == nil && msg == nil {
		err = errors.New("the Marshaler returned no message")
	}
	return msg, err
}

// deliveries counts how often a quorum queue has delivered the message before.
func deliveries(d amqp091.Delivery) int {
	switch n := d.Headers["x-delivery-count"].(type) {
	case int64:
		return int(n)
	case int32:
		return int(n)
	}
	return 0
}
