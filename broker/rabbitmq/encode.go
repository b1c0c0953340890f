package rabbitmq

import (
	"fmt"
	"maps"
	"strconv"
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

// prepare makes an AMQP message of msg. All that would make amqp091 or the broker end the channel, or
// the connection, over it and that can be known beforehand is found here.
func (c Config) prepare(topic string, msg *message.Message) (*outgoing, error) {
	switch {
	case msg == nil:
		return nil, refuse(reasonInvalid, "the message is nil")
	case topic == "":
		return nil, refuse(reasonInvalid, "the topic is empty")
	}
	p, err := c.AMQP.Marshaler.Marshal(msg)
	if err != nil {
		return nil, refuse(reasonEncoding, "marshal: %w", err)
	}
	if len(p.Body) > c.MaxMessageBytes {
		return nil, refuse(reasonTooLarge, "the body has %d bytes, the limit is %d", len(p.Body), c.MaxMessageBytes)
	}
	p.DeliveryMode = amqp091.Persistent
	p.Headers = maps.Clone(p.Headers)
	if p.Headers == nil {
		p.Headers = amqp091.Table{}
	}
	p.Headers[returnHeader] = strconv.FormatUint(1<<63, 10) // as long as it can become
	o := &outgoing{
		topic: topic, exchange: c.AMQP.Exchange.GenerateName(topic), key: c.AMQP.Publish.GenerateRoutingKey(topic),
		publishing: p,
	}
	for _, s := range [...]struct{ name, value string }{
		{"exchange", o.exchange}, {"routing key", o.key}, {"content type", p.ContentType},
		{"content encoding", p.ContentEncoding}, {"correlation id", p.CorrelationId}, {"reply-to", p.ReplyTo},
		{"expiration", p.Expiration}, {"message id", p.MessageId}, {"type", p.Type}, {"user id", p.UserId},
		{"app id", p.AppId},
	} {
		if len(s.value) > maxShortString {
			return nil, refuse(reasonEncoding, "the %s has %d bytes, AMQP allows %d", s.name, len(s.value), maxShortString)
		}
		o.headerSize += 1 + len(s.value)
	}
	size, err := tableSize(p.Headers)
	if err != nil {
		return nil, refuse(reasonEncoding, "headers: %w", err)
	}
	o.headerSize += size
	return o, nil
}

// params is the topology that publishing to the message's topic needs.
func (c Config) params(o *outgoing) amqp.BuildTopologyParams {
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
