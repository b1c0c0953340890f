package redisstreams_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/internal/testenv"
)

// Three masters with a replica each; one master dies. What its replica had is delivered, and publisher and
// subscriber go on with it.
func TestAClusterThatLosesAMasterGoesOn(t *testing.T) {
	t.Parallel()
	const patience = 3 * time.Minute
	c := testenv.RedisCluster(t)
	cluster := redis.NewClusterClient(&redis.ClusterOptions{
		Addrs:                      c.Addrs,
		ClusterStateReloadInterval: time.Hour, // it is told when to look which server has what became of a dead one
		// More than the dials that fail here: from that number on a client goes on dialing in a goroutine
		// that outlives it by a second.
		PoolSize: 10_000,
	})
	t.Cleanup(func() { _ = cluster.Close() })
	cfg := inGroup("")
	cfg.Client = cluster
	p, s := publisher(t, cfg), subscriber(t, cfg)
	require.NoError(t, p.Check(t.Context()))

	var topics []string
	masters := map[int]bool{}
	for i := range 6 {
		topics = append(topics, fmt.Sprint("topic", i))
		masters[c.MasterOf(t, topics[i])] = true
	}
	require.Len(t, masters, 3, "the topics are on all masters")
	var got tally
	for _, topic := range topics {
		handlers(func(msg *message.Message) bool { got.add(msg.UUID); return true }, subscribe(t, s, topic))
	}
	send := func(from, to int) {
		for _, topic := range topics {
			for i := from; i < to; i++ {
				msg := []*message.Message{keyed("k", topic+number(i))}
				for end := time.Now().Add(patience); ; {
					ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
					err := p.PublishBatch(ctx, []string{topic}, msg)[0]
					cancel()
					if err == nil {
						break
					}
					require.Empty(t, reasonOf(err), "an outage is no fault of a message: %v", err)
					require.True(t, time.Now().Before(end), err)
				}
			}
		}
	}
	send(0, 10)
	testenv.Eventually(t, patience, "the first messages", func() bool { return got.distinct() == 60 })
	for _, m := range c.Masters {
		testenv.CaughtUp(t, m)
	}
	c.Masters[c.MasterOf(t, topics[0])].Kill()
	send(10, 20)
	testenv.Eventually(t, patience, "the others", func() bool { return got.distinct() == 120 })
}
