package rabbitmq_test

import (
	"testing"

	amqp091 "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/millrace-go/millrace/broker/rabbitmq"
	"github.com/millrace-go/millrace/internal/testenv"
)

func TestMain(m *testing.M) {
	// The suite's TestReconnect leaves a goroutine that collects what was published.
	testenv.Main(m, testenv.IgnoreLeak(goleak.IgnoreTopFunction("github.com/ThreeDotsLabs/watermill/pubsub/tests.TestReconnect.func2")))
}

func newPublisher(t testing.TB, config rabbitmq.Config) *rabbitmq.Publisher {
	t.Helper()
	p, err := rabbitmq.NewPublisher(config)
	require.NoError(t, err)
	t.Cleanup(func() { _ = p.Close() })
	return p
}

// raw is a channel of a connection of the test's own.
func raw(t *testing.T, url string) *amqp091.Channel {
	t.Helper()
	conn, err := amqp091.Dial(url)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	ch, err := conn.Channel()
	require.NoError(t, err)
	return ch
}

// queueLength is the number of messages that are ready in a queue.
func queueLength(t *testing.T, ch *amqp091.Channel, queue string) int {
	t.Helper()
	q, err := ch.QueueDeclarePassive(queue, true, false, false, false, nil)
	require.NoError(t, err)
	return q.Messages
}

// drain takes all messages that are in a queue.
func drain(t *testing.T, ch *amqp091.Channel, queue string) []amqp091.Delivery {
	t.Helper()
	var all []amqp091.Delivery
	for {
		d, ok, err := ch.Get(queue, true)
		require.NoError(t, err)
		if !ok {
			return all
		}
		all = append(all, d)
	}
}
