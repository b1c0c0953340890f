package redisstreams_test

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
	url := testenv.Redis(t)
	topic := testenv.RedisPrefix(t) + "s"
	cfg := inGroup(url)
	cfg.NackDelay = time.Millisecond
	out := subscribe(t, subscriber(t, cfg), topic)
	publish(t, publisher(t, quick(url)), topic, keyed("", "1"))

	const asked = 300 * time.Millisecond
	retry, err := middleware.Retry(middleware.RetryConfig{MaxAttempts: 1})
	require.NoError(t, err)
	first := receive(t, out)
	_, err = retry(func(*message.Message) ([]*message.Message, error) {
		return nil, middleware.RetryAfter(errors.New("busy"), asked)
	})(first)
	require.Error(t, err)
	nacked := time.Now()
	first.Nack()
	second := receive(t, out)
	require.Equal(t, first.UUID, second.UUID)
	require.GreaterOrEqual(t, time.Since(nacked), asked)
	second.Ack()
}
