package loop_test

import (
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

// purgeQueue does what an operator does in a hurry.
func purgeQueue(t *testing.T, url, queue string) {
	t.Helper()
	conn, err := amqp.Dial(url)
	require.NoError(t, err)
	defer conn.Close()
	ch, err := conn.Channel()
	require.NoError(t, err)
	_, err = ch.QueuePurge(queue, false)
	require.NoError(t, err)
}

// purgeStream drops the entries and leaves the group, which goes on from the end.
func purgeStream(t *testing.T, url, stream, _ string) {
	t.Helper()
	opts, err := redis.ParseURL(url)
	require.NoError(t, err)
	rdb := redis.NewClient(opts)
	defer rdb.Close()
	require.NoError(t, rdb.XTrimMaxLen(t.Context(), stream, 0).Err())
}
