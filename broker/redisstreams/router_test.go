package redisstreams_test

import (
	"context"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/internal/testenv"
)

// Closing a router under load costs neither a message nor a second run: what handlers have is finished,
// also what they publish, and the rest waits for the next one.
func TestARouterThatIsClosedUnderLoadRunsEachMessageOnce(t *testing.T) {
	t.Parallel()
	url := testenv.Redis(t)
	prefix := testenv.RedisPrefix(t)
	cfg := inGroup(url)
	cfg.MaxIdle, cfg.CloseTimeout = time.Hour, stall
	const n = 300
	p := publisher(t, quick(url))
	publish(t, p, prefix+"in", numbered("", 0, n)...)
	var runs tally
	for runs.distinct() < n {
		before := runs.distinct()
		router, err := message.NewRouter(message.RouterConfig{CloseTimeout: 2 * stall}, nil)
		require.NoError(t, err)
		router.AddHandler("h", prefix+"in", subscriber(t, cfg), prefix+"out", publisher(t, quick(url)),
			func(msg *message.Message) ([]*message.Message, error) {
				<-time.After(5 * time.Millisecond)
				runs.add(msg.UUID)
				return []*message.Message{message.NewMessage(msg.UUID, nil)}, msg.Context().Err()
			})
		done := make(chan error, 1)
		go func() { done <- router.Run(context.Background()) }()
		testenv.Eventually(t, stall, "some handled", func() bool {
			return runs.distinct() >= min(n, before+60)
		})
		require.NoError(t, router.Close())
		require.NoError(t, <-done)
	}
	c := client(t, url)
	require.Len(t, uuids(t, c, prefix+"out"), n)
	for i := range n {
		require.Equal(t, 1, runs.of(number(i)))
	}
	require.Zero(t, pending(t, c, prefix+"in"))
}
