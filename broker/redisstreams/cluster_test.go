package redisstreams_test

import (
	"errors"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/internal/testenv"
)

// One node that holds all slots: it refuses what spans two keys, as a large cluster does.
func TestAClusterIsServed(t *testing.T) {
	t.Parallel()
	server := testenv.OwnRedis(t, "--cluster-enabled", "yes")
	node := client(t, server.URL)
	require.NoError(t, node.ClusterAddSlotsRange(t.Context(), 0, 16383).Err())
	testenv.Eventually(t, stall, "the cluster to be up", func() bool {
		return node.Set(t.Context(), "probe", "x", 0).Err() == nil
	})
	cluster := redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{node.Options().Addr}})
	t.Cleanup(func() { _ = cluster.Close() })
	cfg := inGroup("")
	cfg.Client = cluster
	p, s := publisher(t, cfg), subscriber(t, cfg)
	require.NoError(t, p.Check(t.Context()))

	topics := []string{"one", "two", "three"}
	var to []string
	var msgs []*message.Message
	for i := range 300 {
		to = append(to, topics[i%3])
		msgs = append(msgs, keyed("k", number(i)))
	}
	require.NoError(t, errors.Join(p.PublishBatch(t.Context(), to, msgs)...))
	for first, topic := range topics {
		out := subscribe(t, s, topic)
		for i := range 100 {
			msg := receive(t, out)
			require.Equal(t, number(first+3*i), msg.UUID)
			if i == 3 {
				msg.Nack()
				msg = receive(t, out)
				require.Equal(t, number(first+3*i), msg.UUID)
			}
			msg.Ack()
		}
	}
	require.NoError(t, s.Close())
	for _, topic := range topics {
		require.Zero(t, pending(t, node, topic))
		require.Empty(t, node.XInfoConsumers(t.Context(), topic, "g").Val())
	}
}
