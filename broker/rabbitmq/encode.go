package rabbitmq

import (
	"fmt"
	"maps"
	"time"

	"github.com/ThreeDotsLabs/watermill-amqp/v3/pkg/amqp"
	"github.com/ThreeDotsLabs/watermill/message"
	amqp091 "github.com/rabbitmq/amqp091-go"

	"github.com/millrace-go/millrace/internal/meta"
)

const (
	// returnHeader numbers a publish on its channel, so that a message that the broker returns is told
	// from others, whatever ids they carry. It is taken off again on receipt.
	returnHeader = meta.Prefix + "publish"

	// longestNumber stands in the header until the publish has its number.
	longestNumber = "18446744073709551615"

	maxShortString = 255
)

// outgoing is one message of a batch on its way.
type outgoing struct {
	topic      string
	exchange   string
	key        string
	publishing amqp091.Publishing
	headerSize int

	done bool
	err  error // once done
}

func (o *outgoing) answer(err error) {
	o.done, o.err = true, err
}

// prepare makes an AMQP message of msg; o is empty, but may have a table of headers. All that would make
// amqp091 or the broker end the channel, or the connection, over it and that can be known beforehand is
// found here.
func (c *Config) prepare(o *outgoing, topic string, msg *message.Message) error {
	switch {
	case msg == nil:
		return refuse(reasonInvalid, "the message is nil")
	case topic == "":
		return refuse(reasonInvalid, "the topic is empty")
	}
	headers := o.publishing.Headers
	if headers == nil {
		headers = make(amqp091.Table, len(msg.Metadata)+2) // the id and the number
	}
	p, err := c.marshal(msg, headers)
	if err != nil {
		return refuse(reasonEncoding, "marshal: %w", err)
	}
	if len(p.Body) > c.MaxMessageBytes {
		return refuse(reasonTooLarge, "the body has %d bytes, the limit is %d", len(p.Body), c.MaxMessageBytes)
	}
	p.DeliveryMode = amqp091.Persistent
	p.Headers[returnHeader] = longestNumber
	o.topic, o.exchange, o.key = topic, c.AMQP.Exchange.GenerateName(topic), c.AMQP.Publish.GenerateRoutingKey(topic)
	o.publishing = p
	for _, s := range [...]struct{ name, value string }{
		{"exchange", o.exchange}, {"routing key", o.key}, {"content type", p.ContentType},
		{"content encoding", p.ContentEncoding}, {"correlation id", p.CorrelationId}, {"reply-to", p.ReplyTo},
		{"expiration", p.Expiration}, {"message id", p.MessageId}, {"type", p.Type}, {"user id", p.UserId},
		{"app id", p.AppId},
	} {
		if len(s.value) > maxShortString {
			return refuse(reasonEncoding, "the %s has %d bytes, AMQP allows %d", s.name, len(s.value), maxShortString)
		}
		o.headerSize += 1 + len(s.value)
	}
	size, err := tableSize(p.Headers)
	if err != nil {
		return refuse(reasonEncoding, "headers: %w", err)
	}
	o.headerSize += size
	return nil
}

// marshal makes an AMQP message whose headers are in the table that it is given: that of another marshaler
// may be used elsewhere, too. Watermill-amqp's own one, with nothing set, is as ours but for the message-id.
func (c *Config) marshal(msg *message.Message, headers amqp091.Table) (amqp091.Publishing, error) {
	_, ours := c.AMQP.Marshaler.(Marshaler)
	stock, ok := c.AMQP.Marshaler.(amqp.DefaultMarshaler)
	plain := ok && stock.PostprocessPublishing == nil && stock.MessageUUIDHeaderKey == ""
	if ours || plain {
		p := marshal(msg, headers)
		if plain {
			p.MessageId = ""
		}
		return p, nil
	}
	p, err := c.AMQP.Marshaler.Marshal(msg)
	clear(headers)
	maps.Copy(headers, p.Headers)
	p.Headers = headers
	return p, err
}

// params is the topology that publishing to the message's topic needs.
func (c *Config) params(o *outgoing) amqp.BuildTopologyParams {
	p := amqp.BuildTopologyParams{Topic: o.topic, ExchangeName: o.exchange, RoutingKey: o.key}
	if c.AMQP.Queue.GenerateName != nil {
		p.QueueName = c.AMQP.Queue.GenerateName(o.topic)
	}
	return p
}

// tableSize is what a table takes on the wire, or why it cannot be written. amqp091 would end the
// connection over a name that is too long, the broker over headers that exceed a frame.
func tableSize(t amqp091.Table) (int, error) {
	size := 4
	for name, value := range t {
		if len(name) > maxShortString {
			return 0, fmt.Errorf("a name of %d bytes, AMQP allows %d", len(name), maxShortString)
		}
		n, err := fieldSize(value)
		if err != nil {
			return 0, err
		}
		size += 1 + len(name) + n
	}
	return size, nil
}

func fieldSize(value any) (int, error) {
	switch v := value.(type) {
	case string:
		return 5 + len(v), nil
	case []byte:
		return 5 + len(v), nil
	case amqp091.Table:
		n, err := tableSize(v)
		return 1 + n, err
	case []any:
		size := 5
		for _, element := range v {
			n, err := fieldSize(element)
			if err != nil {
				return 0, err
			}
			size += n
		}
		return size, nil
	case nil, bool, byte, int8, int, int16, int32, int64, uint16, uint32, float32, float64, amqp091.Decimal, time.Time:
		return 9, nil // at most
	}
	return 0, fmt.Errorf("a value of type %T, which AMQP has not", value)
}
