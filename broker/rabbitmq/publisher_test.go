package rabbitmq_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
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

// queueConfig sends each topic to a queue of that name.
func queueConfig(url string) rabbitmq.Config {
	return rabbitmq.Config{URL: url, AMQP: amqp.NewDurableQueueConfig("")}
}

func messages(n int) []*message.Message {
	msgs := make([]*message.Message, n)
	for i := range msgs {
		msgs[i] = message.NewMessage(watermill.NewUUID(), fmt.Appendf(nil, "%d", i))
	}
	return msgs
}

func publish(t *testing.T, p *rabbitmq.Publisher, topic string, msgs []*message.Message) []error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	errs := p.PublishBatch(ctx, slices.Repeat([]string{topic}, len(msgs)), msgs)
	require.Len(t, errs, len(msgs))
	return errs
}

// reason is why a message was refused, or "" if it was not.
func reason(err error) string {
	var r interface {
		Refused() bool
		Reason() string
	}
	if errors.As(err, &r) && r.Refused() {
		return r.Reason()
	}
	return ""
}

func setup(err error) bool {
	var s interface{ Setup() bool }
	return errors.As(err, &s) && s.Setup()
}

// badExpiration makes messages with the metadata "bad" close the channel.
type badExpiration struct{ rabbitmq.Marshaler }

func (b badExpiration) Marshal(msg *message.Message) (amqp091.Publishing, error) {
	p, err := b.Marshaler.Marshal(msg)
	p.Expiration = msg.Metadata.Get("bad")
	return p, err
}

func TestOfAWindowThatOneMessageClosesOnlyThatMessageIsRefused(t *testing.T) {
	t.Parallel()
	url := testenv.RabbitMQ(t)
	config := queueConfig(url)
	config.AMQP.Marshaler = badExpiration{}
	p := newPublisher(t, config)
	msgs := messages(500)
	for _, i := range []int{249, 400} {
		msgs[i].Metadata.Set("bad", "1.5s")
	}
	for i, err := range publish(t, p, "orders", msgs) {
		if i == 249 || i == 400 {
			require.Equal(t, "precondition", reason(err), "%v", err)
			continue
		}
		require.NoError(t, err, "message %d", i)
	}
	copies := map[string]int{}
	for _, d := range drain(t, raw(t, url), "orders") {
		copies[string(d.Body)]++
	}
	require.Len(t, copies, 498)
	for body, n := range copies {
		require.LessOrEqual(t, n, 2, "copies of message %s", body)
	}
}

func TestAMessageAboveTheBrokersLimitIsRefusedAsTooLarge(t *testing.T) {
	t.Parallel()
	config := queueConfig(testenv.RabbitMQ(t))
	config.MaxMessageBytes = 1 << 30
	config.Timeout = time.Minute // so much takes a slow machine a while
	p := newPublisher(t, config)
	msgs := messages(3)
	msgs[1].Payload = make([]byte, 128<<20+1)
	errs := publish(t, p, "orders", msgs)
	require.NoError(t, errs[0])
	require.Equal(t, "too_large", reason(errs[1]), "%v", errs[1])
	require.NoError(t, errs[2])
}

func TestMetadataThatDoesNotFitAMQPIsRefusedAndTheConnectionLives(t *testing.T) {
	t.Parallel()
	p := newPublisher(t, queueConfig(testenv.RabbitMQ(t)))
	msgs := messages(4)
	msgs[1].Metadata.Set(strings.Repeat("k", 256), "v")
	msgs[2].Metadata.Set("k", strings.Repeat("v", 200_000))
	errs := publish(t, p, "orders", msgs)
	require.NoError(t, errs[0])
	require.Equal(t, "encoding", reason(errs[1]), "%v", errs[1])
	require.Equal(t, "too_large", reason(errs[2]), "%v", errs[2])
	require.NoError(t, errs[3])

	errs = p.PublishBatch(t.Context(), []string{strings.Repeat("t", 256)}, messages(1))
	require.Equal(t, "encoding", reason(errs[0]))
	require.NoError(t, p.Publish("orders", messages(1)...))
}

func TestAMissingExchangeIsDeclaredAgain(t *testing.T) {
	t.Parallel()
	url := testenv.RabbitMQ(t)
	p := newPublisher(t, rabbitmq.Config{URL: url})
	ch := raw(t, url)
	bind := func() {
		_, err := ch.QueueDeclare("q", true, false, false, false, nil)
		require.NoError(t, err)
		require.NoError(t, ch.ExchangeDeclare("orders", "fanout", true, false, false, false, nil))
		require.NoError(t, ch.QueueBind("q", "", "orders", false, nil))
	}
	bind()
	require.NoError(t, p.Publish("orders", messages(1)...))

	require.NoError(t, ch.ExchangeDelete("orders", false, false))
	errs := publish(t, p, "orders", messages(3))
	for _, err := range errs {
		require.Equal(t, "no_route", reason(err), "it exists again, and nothing is bound: %v", err)
	}
	bind()
	require.NoError(t, p.Publish("orders", messages(1)...))
	require.Equal(t, 2, queueLength(t, ch, "q"))
}

func TestWithoutTopologyAMissingExchangeRefusesItsMessagesAlone(t *testing.T) {
	t.Parallel()
	url := testenv.RabbitMQ(t)
	p := newPublisher(t, rabbitmq.Config{URL: url, SkipTopology: true})
	ch := raw(t, url)
	require.NoError(t, ch.ExchangeDeclare("there", "fanout", true, false, false, false, nil))
	_, err := ch.QueueDeclare("q", true, false, false, false, nil)
	require.NoError(t, err)
	require.NoError(t, ch.QueueBind("q", "", "there", false, nil))

	errs := p.PublishBatch(t.Context(), []string{"there", "missing", "there", "missing", "there"}, messages(5))
	for i, err := range errs {
		if i%2 == 1 {
			require.Equal(t, "no_exchange", reason(err), "%v", err)
		} else {
			require.NoError(t, err)
		}
	}
}

func TestATopicThatCannotBeDeclaredIsRefusedAlone(t *testing.T) {
	t.Parallel()
	url := testenv.RabbitMQ(t)
	p := newPublisher(t, queueConfig(url))
	_, err := raw(t, url).QueueDeclare("other", false, false, false, false, nil) // not durable
	require.NoError(t, err)
	errs := p.PublishBatch(t.Context(), []string{"orders", "other", "orders"}, messages(3))
	require.NoError(t, errs[0])
	require.Equal(t, "topology", reason(errs[1]), "%v", errs[1])
	require.NoError(t, errs[2])
}

func TestAFullQueueIsNoFaultOfTheMessage(t *testing.T) {
	t.Parallel()
	config := queueConfig(testenv.RabbitMQ(t))
	config.AMQP.Queue.Arguments = amqp091.Table{"x-max-length": 3, "x-overflow": "reject-publish"}
	p := newPublisher(t, config)
	nacked := 0
	for _, err := range publish(t, p, "orders", messages(50)) {
		if err != nil {
			require.ErrorIs(t, err, rabbitmq.ErrNacked)
			require.Empty(t, reason(err))
			nacked++
		}
	}
	require.Positive(t, nacked)
	require.Less(t, nacked, 50)
}

func TestABatchLargerThanTheWindowIsSentWhole(t *testing.T) {
	t.Parallel()
	url := testenv.RabbitMQ(t)
	config := queueConfig(url)
	config.Window = 7
	p := newPublisher(t, config)
	for _, err := range publish(t, p, "orders", messages(100)) {
		require.NoError(t, err)
	}
	got := drain(t, raw(t, url), "orders")
	require.Len(t, got, 100)
	for i, d := range got {
		require.Equal(t, fmt.Sprint(i), string(d.Body))
		require.Equal(t, amqp091.Persistent, d.DeliveryMode)
	}
}

func TestWrongCredentialsAndVhostsAreToldAsMisconfiguration(t *testing.T) {
	t.Parallel()
	url := testenv.RabbitMQ(t)
	uri, err := amqp091.ParseURI(url)
	require.NoError(t, err)
	wrong := uri
	wrong.Password = "canary-password"
	nowhere := uri
	nowhere.Vhost = "no-such-vhost"
	for name, c := range map[string]struct {
		url, remedy string
	}{
		"password": {wrong.String(), "correct user and password"},
		"vhost":    {nowhere.String(), "create the vhost"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPublisher(t, rabbitmq.Config{URL: c.url})
			err := p.Check(t.Context())
			require.ErrorContains(t, err, c.remedy)
			require.True(t, setup(err))
			require.NotContains(t, err.Error(), "canary")
			errs := p.PublishBatch(t.Context(), []string{"orders"}, messages(1))
			require.True(t, setup(errs[0]), "%v", errs[0])
		})
	}
	require.NoError(t, newPublisher(t, rabbitmq.Config{URL: url}).Check(t.Context()))
}

func TestABadConfigurationIsToldWhole(t *testing.T) {
	t.Parallel()
	_, err := rabbitmq.NewPublisher(rabbitmq.Config{
		URL: "amqp://user:canary@host:no-port/", Window: -1, Timeout: -1,
		AMQP: amqp.Config{Publish: amqp.PublishConfig{Transactional: true}},
	})
	require.Error(t, err)
	for _, part := range []string{"URL", "Window", "Timeout", "Transactional"} {
		require.ErrorContains(t, err, part)
	}
	require.NotContains(t, err.Error(), "canary")
	_, err = rabbitmq.NewPublisher(rabbitmq.Config{})
	require.ErrorContains(t, err, "URL is missing")
}
