package redisstreams_test

import (
	"context"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/broker/redisstreams"
	"github.com/millrace-go/millrace/internal/fault/proxy"
	"github.com/millrace-go/millrace/internal/testenv"
)

// through puts a proxy before the server and returns the URL that leads over it.
func through(t testing.TB, server string) (*proxy.Proxy, string) {
	u, err := url.Parse(server)
	require.NoError(t, err)
	p := proxy.New(t, u.Host)
	u.Host = p.Addr
	return p, u.String()
}

// forward sends n messages of each key as a forwarder does: several of a key in a batch, and after a
// failure again from the first that was not confirmed. Before is called before each batch.
func forward(t testing.TB, p *redisstreams.Publisher, topic string, keys []string, n, perBatch int, before func(round int)) {
	t.Helper()
	next := make(map[string]int)
	for round := 0; ; round++ {
		var msgs []*message.Message
		for i := range perBatch {
			for _, key := range keys {
				if next[key]+i < n {
					msgs = append(msgs, keyed(key, key+number(next[key]+i)))
				}
			}
		}
		if len(msgs) == 0 {
			return
		}
		before(round)
		failed := make(map[string]bool)
		for i, err := range p.PublishBatch(context.Background(), batchTo(topic, len(msgs)), msgs) {
			key := msgs[i].Metadata.Get("millrace_key")
			switch {
			case err != nil:
				require.Empty(t, reasonOf(err), err)
				failed[key] = true
			case failed[key]:
				require.Fail(t, "a message is confirmed though one of its key before it failed")
			default:
				next[key]++
			}
		}
	}
}

// requireFirstsInOrder checks that each key's messages are all there, and came for the first time in order.
func requireFirstsInOrder(t testing.TB, ids []string, keys []string, n int) {
	t.Helper()
	for _, key := range keys {
		next := 0
		for _, id := range ids {
			if rest, ok := strings.CutPrefix(id, key); ok && rest >= number(next) {
				require.Equal(t, number(next), rest, "key %s", key)
				next++
			}
		}
		require.Equal(t, n, next, "messages of key %s", key)
	}
}

var someKeys = []string{"a", "b", "c", "d", "e", "f", "g"}

func TestCutConnectionsAndLostRepliesLeaveFirstDeliveriesInOrder(t *testing.T) {
	t.Parallel()
	server := testenv.Redis(t)
	topic := testenv.RedisPrefix(t) + "s"
	between, over := through(t, server)
	cfg := quick(over) // with go-redis' own repeats on
	cfg.Timeout = 500 * time.Millisecond
	p := publisher(t, cfg)
	n := 200
	if testenv.Full() {
		n = 2000
	}
	var cuts sync.WaitGroup
	forward(t, p, topic, someKeys, n, 10, func(round int) {
		switch round % 4 {
		case 1: // the reply of this batch does not arrive
			between.BlackholeReplies(true)
			cuts.Go(func() { <-time.After(20 * time.Millisecond); between.Cut(); between.BlackholeReplies(false) })
		case 3: // cut at the first byte of a script call
			between.OnBytes(true, []byte("evalsha"), between.Cut)
		}
	})
	cuts.Wait()
	ids := uuids(t, client(t, server), topic)
	requireFirstsInOrder(t, ids, someKeys, n)
	require.Greater(t, len(ids), n*len(someKeys), "no reply was lost: the test shows nothing")
}

// comesAndGoes sets what the server is to have to 1, which it has not, and back to 0 every other millisecond until
// stop is called.
func comesAndGoes(t testing.TB, c *redis.Client, name string) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var toggles sync.WaitGroup
	toggles.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			_ = set(c, name, []string{"1", "0"}[i%2])()
			select {
			case <-ctx.Done():
			case <-time.After(time.Millisecond):
			}
		}
	})
	end := func() { cancel(); toggles.Wait() }
	t.Cleanup(end)
	return func() { end(); require.NoError(t, set(c, name, "0")()) }
}

func TestMemoryThatComesAndGoesLeavesKeysInOrder(t *testing.T) {
	t.Parallel()
	server := testenv.OwnRedis(t)
	c := client(t, server.URL)
	stop := comesAndGoes(t, c, "maxmemory")
	n, perBatch, rounds := 1500, 100, 0 // more than one round trip for each batch
	p := publisher(t, quick(server.URL))
	forward(t, p, "s", someKeys, n, perBatch, func(int) { rounds++ })
	stop()
	ids := uuids(t, c, "s")
	requireFirstsInOrder(t, ids, someKeys, n)
	require.Len(t, ids, n*len(someKeys), "an entry that was refused for want of memory is not in the stream")
	require.Greater(t, rounds, n/perBatch+3, "memory was never short: the test shows nothing")
}

func TestALostReplyOfAReadKeepsTheOrderOfAKey(t *testing.T) {
	t.Parallel()
	server := testenv.Redis(t)
	topic := testenv.RedisPrefix(t) + "s"
	between, over := through(t, server)
	cfg := inGroup(over)
	cfg.MaxIdle = time.Hour // nobody else comes to help
	out := subscribe(t, subscriber(t, cfg), topic)
	p := publisher(t, quick(server))
	c := client(t, server)
	for round := range 10 {
		first := 10 * round
		// When the reply with these five comes, there are five more, and the reply is lost.
		lost := make(chan struct{})
		between.OnBytes(false, []byte(number(first)), func() {
			publish(t, p, topic, numbered("k", first+5, first+10)...)
			between.Cut()
			close(lost)
		})
		publish(t, p, topic, numbered("k", first, first+5)...)
		for i := range 10 {
			msg := receive(t, out)
			require.Equal(t, number(first+i), msg.UUID)
			msg.Ack()
		}
		<-lost
		testenv.Eventually(t, stall, "acknowledged", func() bool { return pending(t, c, topic) == 0 })
	}
}

func TestAMemberThatWasCutOffLearnsThatItsMessageIsTaken(t *testing.T) {
	t.Parallel()
	server := testenv.Redis(t)
	topic := testenv.RedisPrefix(t) + "s"
	between, over := through(t, server)
	cfg := inGroup(over)
	cfg.MaxIdle = 6 * time.Second // it learns of it within 2 s, and takes nothing back from who is slow
	out := subscribe(t, subscriber(t, cfg), topic)
	publish(t, publisher(t, quick(server)), topic, numbered("k", 0, 2)...)
	held := receive(t, out)
	between.Blackhole(true)
	cfg.URL, cfg.MaxIdle = server, 300*time.Millisecond
	other := subscribe(t, subscriber(t, cfg), topic)
	taken := receive(t, other)
	require.Equal(t, held.UUID, taken.UUID)
	require.NoError(t, held.Context().Err())
	between.Cut()
	between.Blackhole(false)
	select {
	case <-held.Context().Done():
	case <-time.After(stall):
		require.Fail(t, "the context of the taken message did not end")
	}
	held.Nack() // is no longer ours to try again
	taken.Ack()
	second := receive(t, other)
	require.Equal(t, number(1), second.UUID)
	second.Ack()
	select {
	case msg := <-out:
		require.Fail(t, "came again to who lost it", msg.UUID)
	case <-time.After(300 * time.Millisecond):
	}
}

func TestARestartOfRedisLosesNothing(t *testing.T) {
	t.Parallel()
	server := testenv.OwnRedis(t)
	cfg := inGroup(server.URL)
	cfg.Timeout = time.Second
	var got tally
	handlers(func(msg *message.Message) bool { got.add(msg.UUID); return true },
		subscribe(t, subscriber(t, cfg), "s"), subscribe(t, subscriber(t, cfg), "s"))
	p := publisher(t, cfg)
	n, publishers := 100, 10
	var wg sync.WaitGroup
	for i := range publishers {
		wg.Go(func() {
			for _, msg := range numbered("", i*n, (i+1)*n) {
				for p.Publish("s", msg.Copy()) != nil {
					<-time.After(20 * time.Millisecond)
				}
				<-time.After(time.Millisecond)
			}
		})
	}
	testenv.Eventually(t, stall, "a quarter", func() bool { return got.distinct() > n*publishers/4 })
	server.Restart()
	testenv.Eventually(t, stall, "a half", func() bool { return got.distinct() > n*publishers/2 })
	server.Pause()
	<-time.After(300 * time.Millisecond)
	server.Resume()
	wg.Wait()
	testenv.Eventually(t, stall, "all", func() bool { return got.distinct() == n*publishers })
	c := client(t, server.URL)
	testenv.Eventually(t, stall, "all acknowledged", func() bool { return pending(t, c, "s") == 0 })
}

func TestCloseIsBoundedWhenRedisIsFrozen(t *testing.T) {
	t.Parallel()
	server := testenv.OwnRedis(t)
	cfg := inGroup(server.URL)
	cfg.CloseTimeout = 300 * time.Millisecond
	s := subscriber(t, cfg)
	out := subscribe(t, s, "s")
	publish(t, publisher(t, cfg), "s", numbered("", 0, 3)...)
	receive(t, out).Ack()
	receive(t, out)
	server.Pause()
	defer server.Resume()
	start := time.Now()
	require.NoError(t, s.Close())
	require.Less(t, time.Since(start), time.Minute)
}

// Several batches of different keys in one stream at once: each key keeps its order.
func TestConcurrentBatchesKeepTheOrderOfTheirKeys(t *testing.T) {
	t.Parallel()
	server := testenv.Redis(t)
	topic := testenv.RedisPrefix(t) + "s"
	p := publisher(t, quick(server))
	var wg sync.WaitGroup
	for key := range slices.Values(someKeys) {
		wg.Go(func() { forward(t, p, topic, []string{key}, 300, 10, func(int) {}) })
	}
	wg.Wait()
	requireFirstsInOrder(t, uuids(t, client(t, server), topic), someKeys, 300)
}
