package rabbitmq_test

import (
	"errors"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/middleware"
)

func TestAHandlerSaysWhenItsMessageComesAgain(t *testing.T) {
	t.Parallel()
	config := queueConfig(testenv.RabbitMQ(t))
	config.NackDelay = time.Millisecond
	out, err := newSubscriber(t, config).Subscribe(t.Context(), "orders")
	require.NoError(t, err)
	require.NoError(t, newPublisher(t, config).Publish("orders", messages(1)...))

	const asked = 300 * time.Millisecond
	retry, err := middleware.Retry(middleware.RetryConfig{MaxAttempts: 1})
	require.NoError(t, err)
	first := next(t, out)
	_, err = retry(func(*message.Message) ([]*message.Message, error) {
		return nil, middleware.RetryAfter(errors.New("busy"), asked)
	})(first)
	require.Error(t, err)
	nacked := time.Now()
	first.Nack()
	second := next(t, out)
	require.Equal(t, first.UUID, second.UUID)
	require.GreaterOrEqual(t, time.Since(nacked), asked)
	second.Ack()
}
