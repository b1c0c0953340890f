package redisstore_test

import (
	"context"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/store"
	"github.com/millrace-go/millrace/store/redisstore"
)

// When the master of a group dies, what its replica had received is stored, and the store goes on by itself.
func TestTheStoreOutlivesTheDeathOfAMaster(t *testing.T) {
	t.Parallel()
	c := testenv.RedisCluster(t)
	rdb := redis.NewClusterClient(&redis.ClusterOptions{Addrs: c.Addrs, ContextTimeoutEnabled: true, ReadTimeout: time.Minute})
	t.Cleanup(func() { _ = rdb.Close() })
	s := newStore(t, rdb, redisstore.Config{Namespace: "x"})
	e := store.Entry{Group: "billing", MessageID: "m", Payload: []byte("payload"), Metadata: map[string]string{}}
	require.NoError(t, s.Defer(t.Context(), e, 0))
	dead := e
	dead.MessageID = "dead"
	require.NoError(t, s.Put(t.Context(), store.Letter{Entry: dead, Reason: "r"}))

	master := c.Masters[c.MasterOf(t, "{x:store:v1:billing}:n")]
	testenv.CaughtUp(t, master)
	master.Kill()
	testenv.Eventually(t, 2*time.Minute, "the store answers again", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		st, err := s.Stats(ctx, "billing")
		return err == nil && st == (store.Stats{Stored: 1, Due: 1, Dead: 1})
	})
	taken, _, err := s.Take(t.Context(), store.Take{Group: "billing", Owner: "a", Limit: 10, Lease: time.Minute})
	require.NoError(t, err)
	require.Equal(t, []store.Entry{e}, taken)
}
