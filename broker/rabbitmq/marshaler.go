package rabbitmq

import (
	"encoding/json"
	"fmt"
	"maps"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-amqp/v3/pkg/amqp"
	"github.com/ThreeDotsLabs/watermill/message"
	amqp091 "github.com/rabbitmq/amqp091-go"
)

// Marshaler writes messages as watermill-amqp's DefaultMarshaler does, so that either reads what the
// other wrote, and reads whatever there is in a queue: Unmarshal never fails.
//
// Headers become metadata. Text stays as it is; numbers, booleans and times (RFC 3339, UTC) become
// text; tables and lists, such as x-death, become JSON; bytes that are no text are dropped. The id is
// the header of watermill-amqp, or else AMQP's message-id, or else a random one: a message without
// an id cannot be told from its copies, and taking equal contents for copies would lose messages.
type Marshaler struct{}

// Marshal implements amqp.Marshaler.
func (Marshaler) Marshal(msg *message.Message) (amqp091.Publishing, error) {
	return marshal(msg, make(amqp091.Table, len(msg.Metadata)+1)), nil
}

func marshal(msg *message.Message, headers amqp091.Table) amqp091.Publishing {
	fill(headers, msg)
	p := amqp091.Publishing{Body: msg.Payload, Headers: headers, DeliveryMode: amqp091.Persistent}
	if len(msg.UUID) <= maxShortString {
		p.MessageId = msg.UUID
	}
	return p
}

// fill makes a table the headers of msg. Where it has the headers of another message, those that are the same
// stay as they are: each value that is put there is an allocation.
func fill(headers amqp091.Table, msg *message.Message) {
	n := 1
	for name, value := range msg.Metadata {
		if !ofTransport(name) {
			put(headers, name, value)
			n++
		}
	}
	put(headers, amqp.DefaultMessageUUIDHeaderKey, msg.UUID)
	if _, numbered := headers[returnHeader]; numbered {
		n++
	}
	if len(headers) == n {
		return
	}
	maps.DeleteFunc(headers, func(name string, _ any) bool {
		_, wanted := msg.Metadata[name]
		return !wanted && !ofTransport(name)
	})
}

// ofTransport names the headers that are not the message's metadata.
func ofTransport(name string) bool {
	return name == amqp.DefaultMessageUUIDHeaderKey || name == returnHeader
}

func put(headers amqp091.Table, name, value string) {
	if there, ok := headers[name].(string); !ok || there != value {
		headers[name] = value
	}
}

// Unmarshal implements amqp.Marshaler.
func (Marshaler) Unmarshal(d amqp091.Delivery) (*message.Message, error) {
	id, _ := d.Headers[amqp.DefaultMessageUUIDHeaderKey].(string)
	if id == "" {
		id = d.MessageId
	}
	if id == "" {
		id = watermill.NewUUID()
	}
	msg := message.NewMessage(id, d.Body)
	for name, value := range d.Headers {
		if name == amqp.DefaultMessageUUIDHeaderKey {
			continue
		}
		if text, ok := headerText(value); ok {
			msg.Metadata[name] = text
		}
	}
	return msg, nil
}

// textOnly is the table with every value as text, or left out if it is none.
func textOnly(t amqp091.Table) amqp091.Table {
	text := make(amqp091.Table, len(t))
	for name, value := range t {
		if v, ok := headerText(value); ok {
			text[name] = v
		}
	}
	return text
}

// headerText returns a header's value as text, or false if it is none.
func headerText(value any) (string, bool) {
	switch v := value.(type) {
	case nil:
		return "", true
	case string:
		return v, true
	case []byte:
		return string(v), utf8.Valid(v)
	case bool:
		return strconv.FormatBool(v), true
	case float32:
		return strconv.FormatFloat(float64(v), 'g', -1, 32), true
	case float64:
		return strconv.FormatFloat(v, 'g', -1, 64), true
	case time.Time:
		return v.UTC().Format(time.RFC3339), true
	case amqp091.Table, []any, amqp091.Decimal:
		text, err := json.Marshal(v)
		return string(text), err == nil
	}
	return fmt.Sprint(value), true // the integers
}
