package redisstreams_test

import (
	"context"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/broker/redisstreams"
	"github.com/millrace-go/millrace/internal/testenv"
)

func TestTrimmingDropsNothingThatAGroupHasNotFinished(t *testing.T) {
	t.Parallel()
	url := testenv.Redis(t)
	topic := testenv.RedisPrefix(t) + "s"
	c := client(t, url)
	ctx := t.Context()
	publish(t, publisher(t, quick(url)), topic, numbered("", 0, 1000)...)
	trimmer, err := redisstreams.NewTrimmer(redisstreams.TrimmerConfig{
		Client: c, Streams: map[string][]string{topic: {"fast", "slow"}}, Keep: time.Nanosecond,
	})
	require.NoError(t, err)
	read := func(group string, n int64, ack bool) []redis.XMessage {
		streams, err := c.XReadGroup(ctx, &redis.XReadGroupArgs{Group: group, Consumer: "c", Streams: []string{topic, ">"}, Count: n}).Result()
		require.NoError(t, err)
		if ack {
			for _, e := range streams[0].Messages {
				require.NoError(t, c.XAck(ctx, topic, group, e.ID).Err())
			}
		}
		return streams[0].Messages
	}
	first := func() string { return uuids(t, c, topic)[0] }
	trim := func() {
		t.Helper()
		_, err := trimmer.Trim(ctx, topic)
		require.NoError(t, err)
	}

	require.NoError(t, c.XGroupCreate(ctx, topic, "fast", "0").Err())
	read("fast", 1000, true)
	_, err = trimmer.Trim(ctx, topic)
	require.ErrorContains(t, err, "slow", "a group that is not there has read nothing")
	require.Equal(t, number(0), first())

	require.NoError(t, c.XGroupCreate(ctx, topic, "slow", "0").Err())
	trim()
	require.Equal(t, number(0), first(), "unread by slow")

	held := read("slow", 300, false)
	trim()
	require.Equal(t, number(0), first(), "pending for slow")

	for _, e := range held[:250] {
		require.NoError(t, c.XAck(ctx, topic, "slow", e.ID).Err())
	}
	trim()
	require.Equal(t, number(200), first(), "a block of 100 goes when all of it is done")

	for _, e := range held[250:] {
		require.NoError(t, c.XAck(ctx, topic, "slow", e.ID).Err())
	}
	read("slow", 1000, true)
	trim()
	require.LessOrEqual(t, c.XLen(ctx, topic).Val(), int64(100))
}

func TestATrimmerKeepsWhatIsYoungAndRunsUntilItsContextEnds(t *testing.T) {
	t.Parallel()
	url := testenv.Redis(t)
	topic := testenv.RedisPrefix(t) + "s"
	c := client(t, url)
	publish(t, publisher(t, quick(url)), topic, numbered("", 0, 500)...)
	require.NoError(t, c.XGroupCreate(t.Context(), topic, "g", "$").Err())
	run := func(keep time.Duration) (stop func()) {
		trimmer, err := redisstreams.NewTrimmer(redisstreams.TrimmerConfig{
			URL: url, Streams: map[string][]string{topic: {"g"}}, Keep: keep, Every: 10 * time.Millisecond,
		})
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- trimmer.Run(ctx) }()
		return func() { cancel(); require.NoError(t, <-done) }
	}
	stop := run(0)
	<-time.After(100 * time.Millisecond)
	require.EqualValues(t, 500, c.XLen(t.Context(), topic).Val())
	stop()
	stop = run(time.Nanosecond)
	testenv.Eventually(t, stall, "trimmed", func() bool { return c.XLen(context.Background(), topic).Val() <= 100 })
	stop()
	_, err := redisstreams.NewTrimmer(redisstreams.TrimmerConfig{Keep: -1})
	for _, what := range []string{"Client or URL", "Streams", "Keep"} {
		require.ErrorContains(t, err, what)
	}
}
