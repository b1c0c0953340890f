package redisstreams_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/millrace-go/millrace/broker/redisstreams"
	"github.com/millrace-go/millrace/internal/testenv"
)

func TestMain(m *testing.M) {
	// The suite's TestReconnect leaves a goroutine that collects what was published.
	testenv.Main(m, testenv.IgnoreLeak(goleak.IgnoreTopFunction("github.com/ThreeDotsLabs/watermill/pubsub/tests.TestReconnect.func2")))
}

// client is a plain client of the server at url.
func client(t testing.TB, url string) *redis.Client {
	t.Helper()
	opts, err := redis.ParseURL(url)
	require.NoError(t, err)
	c := redis.NewClient(opts)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// quick is a configuration whose times fit a test.
func quick(url string) redisstreams.Config {
	return redisstreams.Config{
		URL:          url,
		NackDelay:    20 * time.Millisecond,
		MaxIdle:      time.Second,
		CloseTimeout: 2 * time.Second,
		Block:        50 * time.Millisecond,
	}
}

func publisher(t testing.TB, cfg redisstreams.Config) *redisstreams.Publisher {
	t.Helper()
	p, err := redisstreams.NewPublisher(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { _ = p.Close() })
	return p
}

func subscriber(t testing.TB, cfg redisstreams.Config) *redisstreams.Subscriber {
	t.Helper()
	s, err := redisstreams.NewSubscriber(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// stall is how long a test waits for what must happen.
const stall = 2 * time.Minute

func number(i int) string { return fmt.Sprintf("%06d", i) }

// receive waits for the next message.
func receive(t testing.TB, messages <-chan *message.Message) *message.Message {
	t.Helper()
	select {
	case msg, open := <-messages:
		require.True(t, open, "the subscription ended")
		return msg
	case <-time.After(stall):
		require.Fail(t, "no message came")
		return nil
	}
}
