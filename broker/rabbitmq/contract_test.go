package rabbitmq_test

import (
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill-amqp/v3/pkg/amqp"
	"github.com/ThreeDotsLabs/watermill/message"
	amqp091 "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/broker/brokertest"
	"github.com/millrace-go/millrace/broker/rabbitmq"
	"github.com/millrace-go/millrace/internal/testenv"
)

func newSubscriber(t *testing.T, config rabbitmq.Config) *rabbitmq.Subscriber {
	t.Helper()
	s, err := rabbitmq.NewSubscriber(config)
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func TestTheContractHoldsOnClassicQueues(t *testing.T) {
	contract(t, rabbitmq.Config{URL: testenv.RabbitMQ(t)})
}

func TestTheContractHoldsOnQuorumQueues(t *testing.T) {
	contract(t, rabbitmq.Config{URL: testenv.RabbitMQ(t), Quorum: true})
}

func contract(t *testing.T, config rabbitmq.Config) {
	const limit = 1 << 20
	config.MaxMessageBytes = limit
	brokertest.Run(t, brokertest.Broker{
		MaxPayload: limit,
		NewPublisher: func(t *testing.T) brokertest.BatchPublisher {
			return newPublisher(t, config)
		},
		NewSubscriber: func(t *testing.T, s brokertest.Settings) message.Subscriber {
			config := config
			config.ConsumerGroup = s.Group
			config.Concurrency = s.Concurrency
			config.NackDelay = 30 * time.Millisecond
			config.CloseTimeout = max(s.CloseTimeout, time.Second)
			return newSubscriber(t, config)
		},
		Unreachable: func(t *testing.T) brokertest.BatchPublisher {
			return newPublisher(t, rabbitmq.Config{URL: "amqp://user:canary@127.0.0.1:1/"})
		},
		Unroutable: func(*testing.T) string { return "nobody-listens" },
		WriteMalformed: func(t *testing.T, topic string) int {
			return writeMalformed(t, raw(t, config.URL), topic)
		},
	})
}

// writeMalformed publishes what watermill-amqp cannot read.
func writeMalformed(t *testing.T, ch *amqp091.Channel, exchange string) int {
	t.Helper()
	bad := []amqp091.Publishing{
		{},
		{Body: []byte("no headers")},
		{MessageId: "by message-id"},
		{Headers: amqp091.Table{amqp.DefaultMessageUUIDHeaderKey: int32(7)}},
		{Headers: amqp091.Table{"int": int64(1), "bool": true, "nil": nil, "time": time.Now(), "bytes": []byte{0xff}}},
		{Headers: amqp091.Table{"x-death": []any{amqp091.Table{"count": int64(1), "reason": "expired"}}}},
	}
	for _, p := range bad {
		require.NoError(t, ch.PublishWithContext(t.Context(), exchange, "", true, false, p))
	}
	return len(bad)
}
