package rabbitmq_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-amqp/v3/pkg/amqp"
	"github.com/ThreeDotsLabs/watermill/message"
	amqp091 "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/broker/rabbitmq"
	"github.com/millrace-go/millrace/internal/testenv"
)

func next(t *testing.T, out <-chan *message.Message) *message.Message {
	t.Helper()
	select {
	case m, open := <-out:
		require.True(t, open, "the subscription ended")
		return m
	case <-time.After(time.Minute):
		t.Fatal("no message came")
	}
	return nil
}

func TestAQuorumQueueWithADeliveryLimitDeliversAgainWithEitherMarshaler(t *testing.T) {
	t.Parallel()
	for name, marshaler := range map[string]amqp.Marshaler{"ours": nil, "watermill-amqp's": amqp.DefaultMarshaler{}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			config := queueConfig(testenv.RabbitMQ(t))
			config.Quorum = true
			config.NackDelay = time.Millisecond
			config.AMQP.Marshaler = marshaler
			config.AMQP.Queue.Arguments = amqp091.Table{"x-delivery-limit": 3}
			out, err := newSubscriber(t, config).Subscribe(t.Context(), "orders")
			require.NoError(t, err)
			require.NoError(t, newPublisher(t, config).Publish("orders", messages(1)...))
			first := next(t, out)
			require.False(t, amqp.IsMessageRedelivered(first))
			first.Nack()
			second := next(t, out)
			require.Equal(t, first.UUID, second.UUID)
			require.Equal(t, "1", second.Metadata.Get("x-delivery-count"))
			require.Empty(t, second.Metadata.Get("millrace_reason"))
			require.True(t, amqp.IsMessageRedelivered(second))
			second.Ack()
		})
	}
}

func TestHeadersOfAnyTypeBecomeText(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	m, err := rabbitmq.Marshaler{}.Unmarshal(amqp091.Delivery{MessageId: "id", Headers: amqp091.Table{
		"text": "t", "int": int64(-7), "byte": byte(9), "bool": true, "float": 1.5, "time": at, "nil": nil,
		"bytes": []byte("b"), "binary": []byte{0xff},
		"x-death": []any{amqp091.Table{"count": int64(1), "queue": "q"}},
	}})
	require.NoError(t, err)
	require.Equal(t, "id", m.UUID)
	require.Equal(t, message.Metadata{
		"text": "t", "int": "-7", "byte": "9", "bool": "true", "float": "1.5", "time": "2026-01-02T03:04:05Z", "nil": "",
		"bytes": "b", "x-death": `[{"count":1,"queue":"q"}]`,
	}, m.Metadata)
}

// failing is a marshaler of somebody who did not expect this.
type failing struct{ amqp.DefaultMarshaler }

func (failing) Unmarshal(d amqp091.Delivery) (*message.Message, error) {
	if d.MessageId == "panic" {
		panic("unexpected")
	}
	return nil, errors.New("unexpected")
}

func TestWhatTheMarshalerCannotReadIsHandedOutAndMarked(t *testing.T) {
	t.Parallel()
	url := testenv.RabbitMQ(t)
	config := queueConfig(url)
	config.AMQP.Marshaler = failing{}
	out, err := newSubscriber(t, config).Subscribe(t.Context(), "orders")
	require.NoError(t, err)
	ch := raw(t, url)
	for _, id := range []string{"error", "panic"} {
		require.NoError(t, ch.PublishWithContext(t.Context(), "", "orders", true, false, amqp091.Publishing{MessageId: id, Body: []byte("as it was")}))
		m := next(t, out)
		require.Equal(t, id, m.UUID)
		require.Equal(t, "as it was", string(m.Payload))
		require.Equal(t, "malformed", m.Metadata.Get("millrace_reason"))
		require.Contains(t, m.Metadata.Get("millrace_error"), "unexpected")
		m.Ack()
	}
}

func TestWithoutRequeueANackDeadLettersAndAShutdownDoesNot(t *testing.T) {
	t.Parallel()
	url := testenv.RabbitMQ(t)
	config := queueConfig(url)
	config.Concurrency = 3
	config.CloseTimeout = 100 * time.Millisecond
	config.AMQP.Consume.NoRequeueOnNack = true
	config.AMQP.Queue.Arguments = amqp091.Table{"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"}
	ch := raw(t, url)
	_, err := ch.QueueDeclare("dead", true, false, false, false, nil)
	require.NoError(t, err)
	sub := newSubscriber(t, config)
	out, err := sub.Subscribe(t.Context(), "orders")
	require.NoError(t, err)
	require.NoError(t, newPublisher(t, config).Publish("orders", messages(10)...))

	next(t, out).Nack()
	testenv.Eventually(t, time.Minute, "the dead letter", func() bool { return queueLength(t, ch, "dead") == 1 })
	next(t, out) // its handler hangs
	require.NoError(t, sub.Close())
	testenv.Eventually(t, time.Minute, "the others to be back", func() bool { return queueLength(t, ch, "orders") == 9 })
	require.Equal(t, 1, queueLength(t, ch, "dead"))
}

func TestARouterThatIsClosedUnderLoadHandlesEachMessageOnce(t *testing.T) {
	t.Parallel()
	config := rabbitmq.Config{URL: testenv.RabbitMQ(t), ConsumerGroup: "g", CloseTimeout: time.Minute}
	const total = 300
	initial := newSubscriber(t, config)
	require.NoError(t, initial.SubscribeInitialize("orders"))
	require.NoError(t, newPublisher(t, config).Publish("orders", messages(total)...))

	var handled atomic.Int64
	run := func(stopAfter int64) {
		router, err := message.NewRouter(message.RouterConfig{CloseTimeout: 2 * time.Minute}, watermill.NopLogger{})
		require.NoError(t, err)
		enough := make(chan struct{})
		router.AddConsumerHandler("h", "orders", newSubscriber(t, config), func(m *message.Message) error {
			select { // work that honours its context
			case <-time.After(5 * time.Millisecond):
			case <-m.Context().Done():
				return m.Context().Err()
			}
			if handled.Add(1) == stopAfter {
				close(enough)
			}
			return nil
		})
		ended := make(chan error, 1)
		go func() { ended <- router.Run(context.Background()) }()
		select {
		case <-enough:
		case <-time.After(time.Minute):
			t.Error("the messages do not come")
		}
		require.NoError(t, router.Close())
		require.NoError(t, <-ended)
	}
	run(100)
	require.Less(t, handled.Load(), int64(total))
	run(total)
	require.Equal(t, int64(total), handled.Load())
}

func TestAQueueThatExistsOtherwiseIsToldAtOnce(t *testing.T) {
	t.Parallel()
	url := testenv.RabbitMQ(t)
	_, err := raw(t, url).QueueDeclare("orders_g", true, false, false, false, nil)
	require.NoError(t, err)
	_, err = newSubscriber(t, rabbitmq.Config{URL: url, ConsumerGroup: "g", Quorum: true}).Subscribe(t.Context(), "orders")
	require.True(t, setup(err), "%v", err)
	require.ErrorContains(t, err, "exists with other properties")
	_, err = rabbitmq.NewSubscriber(rabbitmq.Config{URL: url})
	require.ErrorContains(t, err, "ConsumerGroup")
}

// The consume fails for a reason that passes by itself: the subscription has to try again.
func TestAQueueThatSomebodyElseConsumesAloneIsWaitedFor(t *testing.T) {
	t.Parallel()
	config := queueConfig(testenv.RabbitMQ(t))
	sub := newSubscriber(t, config)
	require.NoError(t, sub.SubscribeInitialize("orders"))
	other := raw(t, config.URL)
	_, err := other.Consume("orders", "", true, true, false, false, nil)
	require.NoError(t, err)
	out, err := sub.Subscribe(t.Context(), "orders")
	require.NoError(t, err)
	require.NoError(t, other.Close())
	require.NoError(t, newPublisher(t, config).Publish("orders", messages(1)...))
	next(t, out).Ack()
}
