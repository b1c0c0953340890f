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
	idem := must(t)(middleware.Idempotent(store, middleware.IdempotentConfig{
		OnEvent: e.add, BusyWait: 200 * time.Millisecond, StoreTimeout: 100 * time.Millisecond,
	}))
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
	testenv.Eventually(t, 10*time.Second, "10 handled", func() bool { return handled.Load() == 10 })

	server.Kill()
	before, begin := deliveries.Load(), time.Now()
	publish(10, 20)
	testenv.Eventually(t, 30*time.Second, "messages come again", func() bool { return deliveries.Load()-before >= 60 })
	perSecond := float64(deliveries.Load()-before) / time.Since(begin).Seconds()
	require.Less(t, perSecond, 100.0, "10 messages at 5 deliveries a second, with room")
	require.EqualValues(t, 10, handled.Load())

	server.Start()
	testenv.Eventually(t, 60*time.Second, "20 handled", func() bool { return handled.Load() == 20 })
	require.Zero(t, e.all()[middleware.EventUnguarded])
}

// A process that freezes past its lease and wakes up is told so, by its own clock and by the store.
func TestAProcessThatWakesUpAfterItsLeaseChangesNothing(t *testing.T) {
	t.Parallel()
	server := testenv.OwnRedis(t)
	open := func() *redisdedup.Store {
		return redisdedup.New(redisClient(t, server.URL), redisdedup.Config{Namespace: "x"})
	}
	cfg := middleware.IdempotentConfig{Consumer: "c", Lease: 2 * time.Second, StoreTimeout: 600 * time.Millisecond, DoneTTL: time.Minute}
	started, finish := make(chan struct{}), make(chan struct{})
	slow := chain(func(msg *message.Message) ([]*message.Message, error) {
		close(started)
		<-msg.Context().Done()
		require.ErrorIs(t, context.Cause(msg.Context()), middleware.ErrLeaseLost)
		<-finish
		return []*message.Message{message.NewMessage("", []byte("slow"))}, nil
	}, must(t)(middleware.Idempotent(open(), cfg)))
	fast := chain(func(*message.Message) ([]*message.Message, error) {
		return []*message.Message{message.NewMessage("", []byte("fast"))}, nil
	}, must(t)(middleware.Idempotent(open(), cfg)))

	result := make(chan error, 1)
	go func() {
		_, err := slow(delivery(t.Context(), "m", "p"))
		result <- err
	}()
	<-started
	server.Pause() // to a client, a store that hangs is as good as a client that hangs
	release := time.AfterFunc(2500*time.Millisecond, server.Resume)
	defer release.Stop()
	testenv.Eventually(t, 30*time.Second, "taken over", func() bool {
		out, err := fast(delivery(t.Context(), "m", "p"))
		return err == nil && len(out) == 1 && string(out[0].Payload) == "fast"
	})
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
	}, must(t)(middleware.Idempotent(store, middleware.IdempotentConfig{Consumer: "c", Lease: time.Second, DoneTTL: time.Minute, OnEvent: e.add})))
	_, err := h(delivery(t.Context(), "m", "p"))
	require.NoError(t, err, "acknowledged: the effect has happened")
	require.Equal(t, map[middleware.Event]int{middleware.EventDoneFailed: 1}, e.all())
	server.Start()
	testenv.Eventually(t, 30*time.Second, "works again", func() bool {
		_, err := h(delivery(t.Context(), "m2", "p"))
		return !errors.Is(err, middleware.ErrStoreUnavailable)
	})
}
