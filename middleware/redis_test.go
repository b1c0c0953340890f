package middleware_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/dedup/redisdedup"
	"github.com/millrace-go/millrace/internal/fault/proxy"
	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/middleware"
)

func redisClient(t testing.TB, url string) *redis.Client {
	t.Helper()
	opts, err := redis.ParseURL(url)
	require.NoError(t, err)
	opts.ContextTimeoutEnabled = true
	opts.MaxRetries, opts.DialerRetries = 1, 1
	rdb := redis.NewClient(opts)
	t.Cleanup(func() { _ = rdb.Close() })
	return rdb
}

// Every message comes several times at once, to several processes with one store; handlers fail,
// and panic. Each message takes effect exactly once, and nothing is acknowledged before.
func TestDuplicatesDeliveredConcurrentlyTakeEffectOnce(t *testing.T) {
	t.Parallel()
	messages, copies := 60, 4
	if testenv.Full() {
		messages = 2000
	}
	prefix := testenv.RedisPrefix(t)
	var mu sync.Mutex
	effects := map[string]int{}
	var processes []message.HandlerFunc
	for range copies {
		store := redisdedup.New(redisClient(t, testenv.Redis(t)), redisdedup.Config{Namespace: prefix + "dup"})
		processes = append(processes, chain(func(msg *message.Message) ([]*message.Message, error) {
			switch rand.IntN(5) {
			case 0:
				return nil, errHandler
			case 1:
				panic("boom")
			}
			mu.Lock()
			defer mu.Unlock()
			effects[msg.UUID]++
			return nil, nil
		}, must(t)(middleware.Idempotent(store, middleware.IdempotentConfig{Consumer: "c", MaxClaims: 1000})), middleware.Recoverer))
	}
	var wg sync.WaitGroup
	slots := make(chan struct{}, 100)
	for m := range messages {
		for _, handle := range processes {
			wg.Go(func() {
				slots <- struct{}{}
				defer func() { <-slots }()
				id := fmt.Sprint("m", m)
				for { // a broker that delivers until it is acknowledged
					if _, err := handle(delivery(t.Context(), id, "p")); err == nil {
						break
					}
				}
				mu.Lock()
				defer mu.Unlock()
				if effects[id] == 0 {
					t.Errorf("message %s was acknowledged before it took effect", id)
				}
			})
		}
	}
	wg.Wait()
	require.Len(t, effects, messages)
	for id, n := range effects {
		require.Equal(t, 1, n, id)
	}
}

// A router goes on handing messages out while Redis is away. None is handled, none is lost, and nobody
// turns in circles.
func TestWhileRedisIsDownMessagesWait(t *testing.T) {
	t.Parallel()
	server := testenv.OwnRedis(t)
	store := redisdedup.New(redisClient(t, server.URL), redisdedup.Config{Namespace: "x"})
	var e events
	idem := must(t)(middleware.Idempotent(store, middleware.IdempotentConfig{OnEvent: e.add, BusyWait: 200 * time.Millisecond}))
	ch := gochannel.NewGoChannel(gochannel.Config{OutputChannelBuffer: 100}, watermill.NopLogger{})
	defer ch.Close()
	r := newRouter(t)
	var deliveries, handled atomic.Int64
	r.AddMiddleware(func(next message.HandlerFunc) message.HandlerFunc {
		return func(msg *message.Message) ([]*message.Message, error) {
			deliveries.Add(1)
			return next(msg)
		}
	}, idem)
	r.AddConsumerHandler("billing", "orders", ch, func(*message.Message) error { handled.Add(1); return nil })
	runRouter(t, r)
	publish := func(from, to int) {
		for i := from; i < to; i++ {
			require.NoError(t, ch.Publish("orders", message.NewMessage(fmt.Sprint("m", i), nil)))
		}
	}
	publish(0, 10)
	testenv.Eventually(t, 2*time.Minute, "10 handled", func() bool { return handled.Load() == 10 })

	server.Kill()
	before, begin := deliveries.Load(), time.Now()
	publish(10, 20)
	testenv.Eventually(t, 2*time.Minute, "messages come again", func() bool { return deliveries.Load()-before >= 60 })
	perSecond := float64(deliveries.Load()-before) / time.Since(begin).Seconds()
	require.Less(t, perSecond, 100.0, "10 messages at 5 deliveries a second, with room")
	require.EqualValues(t, 10, handled.Load())

	server.Start()
	testenv.Eventually(t, 2*time.Minute, "20 handled", func() bool { return handled.Load() == 20 })
	require.Zero(t, e.all()[middleware.EventUnguarded])
}

// A process that freezes past its lease and wakes up is told so, by its own clock and by the store.
func TestAProcessThatWakesUpAfterItsLeaseChangesNothing(t *testing.T) {
	t.Parallel()
	direct, prefix := redisClient(t, testenv.Redis(t)), testenv.RedisPrefix(t)
	line := proxy.New(t, direct.Options().Addr)
	open := func(rdb *redis.Client) message.HandlerMiddleware {
		return must(t)(middleware.Idempotent(redisdedup.New(rdb, redisdedup.Config{Namespace: prefix + "wakes"}),
			middleware.IdempotentConfig{Consumer: "c", Lease: 6 * time.Second, BusyWait: time.Minute, DoneTTL: time.Hour}))
	}
	started, told, finish := make(chan struct{}), make(chan error, 1), make(chan struct{})
	slow := chain(func(msg *message.Message) ([]*message.Message, error) {
		close(started)
		<-msg.Context().Done()
		told <- context.Cause(msg.Context())
		<-finish
		return []*message.Message{message.NewMessage("", []byte("slow"))}, nil
	}, open(redisClient(t, "redis://"+line.Addr+"/0")))
	fast := chain(func(*message.Message) ([]*message.Message, error) {
		return []*message.Message{message.NewMessage("", []byte("fast"))}, nil
	}, open(direct))

	result := make(chan error, 1)
	go func() {
		_, err := slow(delivery(t.Context(), "m", "p"))
		result <- err
	}()
	<-started
	line.Blackhole(true) // to a client, a store that hangs is as good as a client that hangs
	require.ErrorIs(t, <-told, middleware.ErrLeaseLost)
	testenv.Eventually(t, time.Minute, "taken over", func() bool {
		out, err := fast(delivery(t.Context(), "m", "p"))
		return err == nil && len(out) == 1 && string(out[0].Payload) == "fast"
	})
	line.Cut()
	line.Blackhole(false)
	close(finish)
	require.ErrorIs(t, <-result, middleware.ErrLeaseLost)
	out, err := fast(delivery(t.Context(), "m", "p"))
	require.NoError(t, err)
	require.Equal(t, "fast", string(out[0].Payload))
}

// Redis is away exactly when the effect has happened and is to be recorded.
func TestRedisAwayAtTheMarkOfSuccess(t *testing.T) {
	t.Parallel()
	server := testenv.OwnRedis(t)
	store := redisdedup.New(redisClient(t, server.URL), redisdedup.Config{Namespace: "x"})
	var e events
	calls := 0
	h := chain(func(*message.Message) ([]*message.Message, error) {
		if calls++; calls == 1 {
			server.Kill()
		}
		return nil, nil
	}, must(t)(middleware.Idempotent(store, middleware.IdempotentConfig{
		Consumer: "c", Lease: 3 * time.Second, BusyWait: time.Minute, DoneTTL: time.Hour, OnEvent: e.add,
	})))
	_, err := h(delivery(t.Context(), "m", "p"))
	require.NoError(t, err, "acknowledged: the effect has happened")
	require.Equal(t, map[middleware.Event]int{middleware.EventDoneFailed: 1}, e.all())
	server.Start()
	testenv.Eventually(t, 2*time.Minute, "works again", func() bool {
		_, err := h(delivery(t.Context(), "m2", "p"))
		return !errors.Is(err, middleware.ErrStoreUnavailable)
	})
}
