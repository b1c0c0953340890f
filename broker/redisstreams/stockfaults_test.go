package redisstreams_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	wmredis "github.com/ThreeDotsLabs/watermill-redisstream/pkg/redisstream"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/broker/redisstreams"
	"github.com/millrace-go/millrace/internal/testenv"
)

// member makes the n-th member of the group g on the server at url.
type member func(t *testing.T, url string, n int, maxIdle time.Duration) message.Subscriber

func ourMember(t *testing.T, url string, n int, maxIdle time.Duration) message.Subscriber {
	cfg := inGroup(url)
	cfg.Consumer = fmt.Sprint("member", n)
	cfg.MaxIdle = maxIdle
	return subscriber(t, cfg)
}

func stockMember(t *testing.T, url string, n int, maxIdle time.Duration) message.Subscriber {
	opts, err := redis.ParseURL(url)
	require.NoError(t, err)
	s, err := wmredis.NewSubscriber(wmredis.SubscriberConfig{
		Client: redis.NewClient(opts), ConsumerGroup: "g", Consumer: fmt.Sprint("member", n),
		MaxIdleTime: maxIdle, ClaimInterval: maxIdle / 4, BlockTime: 50 * time.Millisecond, DisableIndefiniteInitialBlock: true,
	}, watermill.NopLogger{})
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// comesBy reports whether cond is true in time.
func comesBy(wait time.Duration, cond func() bool) bool {
	for end := time.Now().Add(wait); time.Now().Before(end); <-time.After(5 * time.Millisecond) {
		if cond() {
			return true
		}
	}
	return cond()
}

// Each is a promise that we keep and watermill-redisstream does not. An error says how it is broken. Wait
// is how long to wait for what has to come.
var stockFaults = map[string]func(t *testing.T, url string, join member, wait time.Duration) error{
	"an entry that is no message stops no member": func(t *testing.T, url string, join member, wait time.Duration) error {
		var good tally
		for n := range 3 {
			handlers(func(msg *message.Message) bool {
				if msg.Metadata.Get("millrace_reason") == "" {
					good.add(msg.UUID)
				}
				return true
			}, listen(t, join(t, url, n, time.Second), "orders"))
		}
		admin := client(t, url)
		require.NoError(t, admin.XAdd(t.Context(), &redis.XAddArgs{Stream: "orders", Values: []any{"metadata", "\xc1"}}).Err())
		// A dead member lets the next one take its entry over: each is to have met it.
		_ = comesBy(5*time.Second, func() bool { return pending(t, admin, "orders") == 0 })
		publish(t, publisher(t, quick(url)), "orders", numbered("", 0, 10)...)
		if !comesBy(wait, func() bool { return good.distinct() == 10 }) {
			return fmt.Errorf("%d of 10 messages came", good.distinct())
		}
		return nil
	},
	"a message that always fails holds nobody up and does not spin": func(t *testing.T, url string, join member, wait time.Duration) error {
		var good tally
		var tries atomic.Int64
		for n := range 3 {
			handlers(func(msg *message.Message) bool {
				if msg.UUID == "bad" {
					tries.Add(1)
					return false
				}
				good.add(msg.UUID)
				return true
			}, listen(t, join(t, url, n, time.Second), "orders"))
		}
		p := publisher(t, quick(url))
		publish(t, p, "orders", keyed("", "bad"))
		begin := time.Now()
		if !comesBy(wait, func() bool { return tries.Load() > 0 }) {
			return fmt.Errorf("it never came")
		}
		_ = comesBy(10*time.Second, func() bool { return tries.Load() > 20 && time.Since(begin) > 5*time.Second })
		publish(t, p, "orders", numbered("", 0, 10)...)
		if !comesBy(wait, func() bool { return good.distinct() == 10 }) {
			return fmt.Errorf("%d of 10 messages came", good.distinct())
		}
		// The delay is 20 ms, and three members might try it each.
		if n, most := tries.Load(), 100+3*int64(time.Since(begin)/(20*time.Millisecond)); n > most {
			return fmt.Errorf("tried %d times in %s", n, time.Since(begin))
		}
		return nil
	},
	"a group that was lost is made again": func(t *testing.T, url string, join member, wait time.Duration) error {
		var got tally
		handlers(func(msg *message.Message) bool { got.add(msg.UUID); return true }, listen(t, join(t, url, 0, time.Second), "orders"))
		p := publisher(t, quick(url))
		publish(t, p, "orders", keyed("", "before"))
		testenv.Eventually(t, stall, "the first message", func() bool { return got.distinct() == 1 })
		require.NoError(t, client(t, url).FlushAll(t.Context()).Err())
		publish(t, p, "orders", numbered("", 0, 3)...)
		if !comesBy(wait, func() bool { return got.distinct() == 4 }) {
			return fmt.Errorf("%d of 3 messages came", got.distinct()-1)
		}
		return nil
	},
	"a slow handler keeps its message": func(t *testing.T, url string, join member, wait time.Duration) error {
		const maxIdle = 9 * time.Second
		hold := maxIdle + 3*time.Second
		if testenv.Full() {
			// A stock member may take over its own entry twice; then it can take nothing more while its handler runs, and
			// the other does when the entry is idle again.
			hold = 5 * maxIdle
		}
		var begun tally
		release := make(chan struct{})
		defer close(release)
		for n := range 2 {
			handlers(func(msg *message.Message) bool {
				begun.add(msg.UUID)
				<-release
				return true
			}, listen(t, join(t, url, n, maxIdle), "orders"))
		}
		publish(t, publisher(t, quick(url)), "orders", numbered("", 0, 1)...)
		if !comesBy(wait, func() bool { return begun.distinct() == 1 }) {
			return fmt.Errorf("it never came")
		}
		if comesBy(hold, func() bool { return begun.of(number(0)) > 1 }) {
			return fmt.Errorf("a message was handled %d times", begun.of(number(0)))
		}
		return nil
	},
}

func listen(t *testing.T, s message.Subscriber, topic string) <-chan *message.Message {
	t.Helper()
	out, err := s.Subscribe(context.Background(), topic)
	require.NoError(t, err)
	return out
}

// The stock pieces run in the full run alone: when one of these fails there, upstream has mended it, and the
// documentation is to be changed.
func TestFaultsOfTheStockPiecesAreNotOurs(t *testing.T) {
	t.Parallel()
	for promise, check := range stockFaults {
		t.Run(promise, func(t *testing.T) {
			t.Parallel()
			require.NoError(t, check(t, testenv.OwnRedis(t).URL, ourMember, stall))
			if testenv.Full() {
				require.Error(t, check(t, testenv.OwnRedis(t).URL, stockMember, 10*time.Second), "watermill-redisstream keeps this promise now")
			}
		})
	}
}

// A stream that is kept small by the stock publisher loses what nobody has read. Ours is trimmed by who has
// read it.
func TestAStreamIsKeptSmallWithoutLossOtherThanByTheStockPublisher(t *testing.T) {
	t.Parallel()
	const n = 1000
	unread := func(t *testing.T, url string) int64 {
		c := client(t, url)
		got, err := c.XReadGroup(t.Context(), &redis.XReadGroupArgs{Group: "g", Consumer: "c", Streams: []string{"orders", ">"}, Count: 2 * n}).Result()
		require.NoError(t, err)
		for _, entry := range got[0].Messages {
			require.NoError(t, c.XAck(t.Context(), "orders", "g", entry.ID).Err())
		}
		return int64(len(got[0].Messages))
	}
	t.Run("ours", func(t *testing.T) {
		t.Parallel()
		url := testenv.OwnRedis(t).URL
		c := client(t, url)
		require.NoError(t, c.XGroupCreateMkStream(t.Context(), "orders", "g", "0").Err())
		trimmer, err := redisstreams.NewTrimmer(redisstreams.TrimmerConfig{
			Client: c, Streams: map[string][]string{"orders": {"g"}}, Keep: time.Nanosecond,
		})
		require.NoError(t, err)
		publish(t, publisher(t, quick(url)), "orders", numbered("", 0, n)...)
		_, err = trimmer.Trim(t.Context(), "orders")
		require.NoError(t, err)
		require.EqualValues(t, n, unread(t, url))
		_, err = trimmer.Trim(t.Context(), "orders")
		require.NoError(t, err)
		require.Less(t, c.XLen(t.Context(), "orders").Val(), int64(n))
	})
	if !testenv.Full() {
		return
	}
	t.Run("stock", func(t *testing.T) {
		t.Parallel()
		url := testenv.OwnRedis(t).URL
		c := client(t, url)
		require.NoError(t, c.XGroupCreateMkStream(t.Context(), "orders", "g", "0").Err())
		p, err := wmredis.NewPublisher(wmredis.PublisherConfig{Client: client(t, url), DefaultMaxlen: 10}, watermill.NopLogger{})
		require.NoError(t, err)
		require.NoError(t, p.Publish("orders", numbered("", 0, n)...))
		require.Less(t, unread(t, url), int64(n), "the stock publisher keeps this promise now")
	})
}
