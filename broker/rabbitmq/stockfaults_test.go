package rabbitmq_test

import (
	"errors"
	"fmt"
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

// pieces is a maker of publishers and subscribers that take watermill-amqp's configuration.
type pieces struct {
	publisher  func(cfg amqp.Config) (message.Publisher, error)
	subscriber func(t *testing.T, cfg amqp.Config) message.Subscriber
}

var ourPieces = pieces{
	publisher: func(cfg amqp.Config) (message.Publisher, error) {
		return rabbitmq.NewPublisher(rabbitmq.Config{AMQP: cfg})
	},
	subscriber: func(t *testing.T, cfg amqp.Config) message.Subscriber {
		return newSubscriber(t, rabbitmq.Config{
			AMQP: cfg, NackDelay: time.Millisecond, CloseTimeout: 100 * time.Millisecond,
			Quorum: cfg.Queue.Arguments["x-queue-type"] == "quorum",
		})
	},
}

var stockPieces = pieces{
	publisher: func(cfg amqp.Config) (message.Publisher, error) {
		return amqp.NewPublisher(cfg, watermill.NopLogger{})
	},
	subscriber: func(t *testing.T, cfg amqp.Config) message.Subscriber {
		s, err := amqp.NewSubscriber(cfg, watermill.NopLogger{})
		require.NoError(t, err)
		t.Cleanup(func() { _ = s.Close() })
		return s
	},
}

// publish makes a publisher, publishes n messages, and closes it. A configuration that is refused is an error too.
func (p pieces) publish(t *testing.T, cfg amqp.Config, topic string, n int) error {
	pub, err := p.publisher(cfg)
	if err != nil {
		return err
	}
	defer func() { _ = pub.Close() }()
	return pub.Publish(topic, messages(n)...)
}

// Each is a promise that we keep and watermill-amqp does not. An error says how it is broken. Wait is how long
// to wait for a message that has to come.
var stockFaults = map[string]func(t *testing.T, url string, by pieces, wait time.Duration) error{
	"a message that no queue took is an error": func(t *testing.T, url string, by pieces, wait time.Duration) error {
		cfg := amqp.NewDurablePubSubConfig(url, nil)
		cfg.Publish.ConfirmDelivery, cfg.Publish.Mandatory = true, true
		if by.publish(t, cfg, "nobody.listens", 1) == nil {
			return errors.New("published without an error")
		}
		return nil
	},
	"a shutdown dead-letters nothing": func(t *testing.T, url string, by pieces, wait time.Duration) error {
		cfg := amqp.NewDurableQueueConfig(url)
		cfg.Consume.NoRequeueOnNack = true
		cfg.Queue.Arguments = amqp091.Table{"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"}
		ch := raw(t, url)
		_, err := ch.QueueDeclare("dead", true, false, false, false, nil)
		require.NoError(t, err)
		sub := by.subscriber(t, cfg)
		out, err := sub.Subscribe(t.Context(), "orders")
		require.NoError(t, err)
		require.NoError(t, by.publish(t, cfg, "orders", 10))
		next(t, out).Ack()
		next(t, out).Ack()
		next(t, out) // is being handled
		require.NoError(t, sub.Close())
		ready := func(queue string) int {
			q, err := ch.QueueDeclarePassive(queue, true, false, false, false, nil)
			require.NoError(t, err)
			return q.Messages
		}
		testenv.Eventually(t, 30*time.Second, "all to be in some queue", func() bool { return ready("orders")+ready("dead") == 8 })
		if n := ready("dead"); n > 0 {
			return fmt.Errorf("%d messages were dead-lettered", n)
		}
		return nil
	},
	"a message that failed once on a quorum queue comes again": func(t *testing.T, url string, by pieces, wait time.Duration) error {
		cfg := amqp.NewDurableQueueConfig(url)
		cfg.Queue.Arguments = amqp091.Table{"x-queue-type": "quorum", "x-delivery-limit": 3}
		out, err := by.subscriber(t, cfg).Subscribe(t.Context(), "orders")
		require.NoError(t, err)
		require.NoError(t, by.publish(t, cfg, "orders", 1))
		first := next(t, out)
		first.Nack()
		select {
		case second := <-out:
			require.Equal(t, first.UUID, second.UUID)
			second.Ack()
			return nil
		case <-time.After(wait):
			return errors.New("it was lost")
		}
	},
	"a message that was dead-lettered before reaches the handler": func(t *testing.T, url string, by pieces, wait time.Duration) error {
		out, err := by.subscriber(t, amqp.NewDurableQueueConfig(url)).Subscribe(t.Context(), "orders")
		require.NoError(t, err)
		require.NoError(t, raw(t, url).PublishWithContext(t.Context(), "", "orders", true, false, amqp091.Publishing{
			MessageId: "m", Body: []byte("p"),
			Headers: amqp091.Table{
				amqp.DefaultMessageUUIDHeaderKey: "m",
				"x-death":                        []any{amqp091.Table{"count": int64(1), "queue": "retry"}},
			},
		}))
		select {
		case msg := <-out:
			msg.Ack()
			require.Equal(t, "m", msg.UUID)
			return nil
		case <-time.After(wait):
			return errors.New("it never came")
		}
	},
	"a message that cannot be encoded is an error, in a transaction too": func(t *testing.T, url string, by pieces, wait time.Duration) error {
		cfg := amqp.NewDurableQueueConfig(url)
		cfg.Publish.Transactional = true
		cfg.Marshaler = unwilling{}
		if by.publish(t, cfg, "orders", 1) == nil {
			return errors.New("published without an error")
		}
		return nil
	},
	"a queue that is deleted hands out no empty message": func(t *testing.T, url string, by pieces, wait time.Duration) error {
		cfg := amqp.NewDurableQueueConfig(url)
		out, err := by.subscriber(t, cfg).Subscribe(t.Context(), "orders")
		require.NoError(t, err)
		_, err = raw(t, url).QueueDelete("orders", false, false, false)
		require.NoError(t, err)
		ch := raw(t, url)
		for {
			// Mandatory is not needed: what is lost while there is no queue is sent again.
			err := ch.PublishWithContext(t.Context(), "", "orders", false, false, amqp091.Publishing{
				MessageId: "real", Headers: amqp091.Table{amqp.DefaultMessageUUIDHeaderKey: "real"},
			})
			require.NoError(t, err)
			select {
			case msg := <-out:
				msg.Ack()
				if msg.UUID != "real" {
					return fmt.Errorf("a message with the id %q was handed out", msg.UUID)
				}
				return nil
			case <-time.After(100 * time.Millisecond):
			}
		}
	},
}

type unwilling struct{ amqp.DefaultMarshaler }

func (unwilling) Marshal(*message.Message) (amqp091.Publishing, error) {
	return amqp091.Publishing{}, errors.New("not this one")
}

// The stock pieces run in the full run alone: when one of these fails there, upstream has mended it, and the
// documentation is to be changed.
func TestFaultsOfTheStockPiecesAreNotOurs(t *testing.T) {
	t.Parallel()
	for promise, check := range stockFaults {
		t.Run(promise, func(t *testing.T) {
			t.Parallel()
			require.NoError(t, check(t, testenv.RabbitMQ(t), ourPieces, time.Minute))
			if testenv.Full() {
				require.Error(t, check(t, testenv.RabbitMQ(t), stockPieces, 10*time.Second), "watermill-amqp keeps this promise now")
			}
		})
	}
}
