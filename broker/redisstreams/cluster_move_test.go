package redisstreams_test

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/internal/testenv"
)

// moveTo has another master of the cluster take the slot of a stream over, with the stream.
func moveTo(ctx context.Context, masters []*redis.Client, topic string, from, to int) error {
	ids := make([]string, len(masters))
	for i, m := range masters {
		id, err := m.Do(ctx, "CLUSTER", "MYID").Text()
		if err != nil {
			return err
		}
		ids[i] = id
	}
	slot, err := masters[from].ClusterKeySlot(ctx, topic).Result()
	if err != nil {
		return err
	}
	host, port, err := net.SplitHostPort(masters[to].Options().Addr)
	if err != nil {
		return err
	}
	step := func(m *redis.Client, args ...any) {
		if err == nil {
			err = m.Do(ctx, args...).Err()
		}
	}
	step(masters[to], "CLUSTER", "SETSLOT", slot, "IMPORTING", ids[from])
	step(masters[from], "CLUSTER", "SETSLOT", slot, "MIGRATING", ids[to])
	step(masters[from], "MIGRATE", host, port, topic, 0, 60_000)
	for _, m := range []*redis.Client{masters[to], masters[from], masters[3-from-to]} {
		step(m, "CLUSTER", "SETSLOT", slot, "NODE", ids[to])
	}
	return err
}

// The client knows of none of the moves, and learns of them by what its commands are answered.
func TestAStreamThatMovesWithinAClusterLosesNothingAndKeepsItsKeysInOrder(t *testing.T) {
	t.Parallel()
	c := testenv.RedisCluster(t)
	cluster := redis.NewClusterClient(&redis.ClusterOptions{Addrs: c.Addrs, ClusterStateReloadInterval: time.Hour})
	t.Cleanup(func() { _ = cluster.Close() })
	cfg := quick("")
	cfg.URL, cfg.Client = "", cluster
	p := publisher(t, cfg)
	var masters []*redis.Client
	for _, m := range c.Masters {
		masters = append(masters, client(t, m.URL))
	}
	const topic, n = "s", 60
	publish(t, p, topic, keyed("", "the first"))

	alone := strings.Split("1 2 3 4 5 6 7 8 9", " ")
	next, done := make(chan struct{}), make(chan struct{})
	every5th := func(round int) {
		if round%5 == 0 {
			next <- struct{}{} // the stream moves while this batch is on its way
		}
	}
	var publishers sync.WaitGroup
	publishers.Go(func() { forward(t, p, topic, alone, n, 1, every5th) })
	publishers.Go(func() { forward(t, p, topic, someKeys, 10*n, 10, every5th) })
	go func() { publishers.Wait(); close(done) }()
	at, moves := c.MasterOf(t, topic), 0
	for more := true; more; {
		select {
		case <-next:
			to := (at + 1) % 3
			require.NoError(t, moveTo(t.Context(), masters, topic, at, to))
			at = to
			moves++
		case <-done:
			more = false
		}
	}

	ids := uuids(t, masters[at], topic)
	requireFirstsInOrder(t, ids, alone, n)
	requireFirstsInOrder(t, ids, someKeys, 10*n)
	require.GreaterOrEqual(t, moves, 2*n/5)
	redirects := ""
	for _, m := range masters {
		redirects += m.Info(t.Context(), "errorstats").Val()
	}
	for _, kind := range []string{"MOVED", "ASK"} {
		require.Contains(t, redirects, fmt.Sprintf("errorstat_%s:", kind))
	}
}
