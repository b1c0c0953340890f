package middleware_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/dedup/redisdedup"
	"github.com/millrace-go/millrace/internal/fault/proxy"
	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/middleware"
)

// outage is a way in which Redis does not serve, for a while.
type outage struct {
	server *testenv.Server
	proxy  *proxy.Proxy
	admin  *redis.Client // not through the proxy
}

func newOutage(t testing.TB) *outage {
	server := testenv.OwnRedis(t, "--loading-process-events-interval-bytes", "1024", "--key-load-delay", "100000")
	admin := redisClient(t, server.URL)
	return &outage{server: server, proxy: proxy.New(t, admin.Options().Addr), admin: admin}
}

func (o *outage) client(t testing.TB) *redis.Client {
	return redisClient(t, "redis://"+o.proxy.Addr+"/0")
}

var outages = map[string]func(t testing.TB, o *outage) (end func()){
	"cut off": func(_ testing.TB, o *outage) func() {
		o.proxy.Refuse(true)
		o.proxy.Cut()
		return func() { o.proxy.Refuse(false) }
	},
	"silent": func(_ testing.TB, o *outage) func() {
		o.proxy.Blackhole(true)
		return func() { o.proxy.Cut(); o.proxy.Blackhole(false) }
	},
	"out of memory": func(t testing.TB, o *outage) func() {
		require.NoError(t, o.admin.ConfigSet(context.Background(), "maxmemory", "1").Err())
		return func() { require.NoError(t, o.admin.ConfigSet(context.Background(), "maxmemory", "0").Err()) }
	},
	"loading": func(t testing.TB, o *outage) func() {
		ctx := context.Background()
		_, err := o.admin.Pipelined(ctx, func(p redis.Pipeliner) error {
			for i := range 1000 {
				p.Set(ctx, fmt.Sprint("ballast", i), "some bytes of it, so that loading them is noticed", 0)
			}
			return nil
		})
		require.NoError(t, err)
		require.NoError(t, o.admin.BgRewriteAOF(ctx).Err())
		testenv.Eventually(t, time.Minute, "a file that takes long to load", func() bool {
			return o.admin.InfoMap(ctx, "persistence").Item("Persistence", "aof_rewrite_in_progress") == "0" &&
				o.admin.InfoMap(ctx, "persistence").Item("Persistence", "aof_rewrite_scheduled") == "0"
		})
		o.server.Kill()
		started := make(chan struct{})
		go func() { defer close(started); o.server.Start() }()
		testenv.Eventually(t, time.Minute, "it to say that it loads", func() bool {
			err := o.admin.Get(ctx, "x").Err()
			return err != nil && redis.HasErrorPrefix(err, "LOADING")
		})
		return func() {
			require.NoError(t, o.admin.ConfigSet(ctx, "key-load-delay", "0").Err())
			<-started
		}
	},
}

// However Redis fails to serve, nothing is handled meanwhile, nobody turns in circles, and all is handled
// once when it is back.
func TestHoweverRedisFailsNothingRunsAndNothingIsLost(t *testing.T) {
	t.Parallel()
	for name, begin := range outages {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newOutage(t)
			store := redisdedup.New(o.client(t), redisdedup.Config{Namespace: "x"})
			var e events
			var calls atomic.Int64
			h := chain(func(*message.Message) ([]*message.Message, error) { calls.Add(1); return nil, nil },
				must(t)(middleware.Idempotent(store, middleware.IdempotentConfig{
					Consumer: "c", Lease: 3 * time.Second, BusyWait: 200 * time.Millisecond, StoreTimeout: time.Second,
					DoneTTL: time.Hour, MaxClaims: 1000, OnEvent: e.add,
				})))
			deliverUntilDone(t, h, "before", 10, nil)
			require.EqualValues(t, 10, calls.Load())

			end := begin(t, o)
			down := make(chan struct{}) // each message was nacked at least once
			var nacked sync.Map
			var nacks atomic.Int64
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				deliverUntilDone(t, h, "during", 10, func(id string, err error) {
					if !errors.Is(err, middleware.ErrStoreUnavailable) && !errors.Is(err, middleware.ErrInProgress) {
						t.Errorf("%s: %v", id, err)
					}
					if _, again := nacked.LoadOrStore(id, true); !again && nacks.Add(1) == 10 {
						close(down)
					}
				})
			}()
			<-down
			require.EqualValues(t, 10, calls.Load(), "nothing ran")
			end()
			<-ended
			require.EqualValues(t, 20, calls.Load(), "each ran once")
			require.Zero(t, e.all()[middleware.EventUnguarded])
		})
	}
}

// deliverUntilDone delivers n messages at once, each again until it is acknowledged, after the delay that
// the error asks for. It gives up after three minutes.
func deliverUntilDone(t testing.TB, h message.HandlerFunc, prefix string, n int, onNack func(id string, err error)) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			id := fmt.Sprint(prefix, i)
			for {
				_, err := h(delivery(context.Background(), id, "p"))
				if err == nil {
					return
				}
				if onNack != nil {
					onNack(id, err)
				}
				select {
				case <-time.After(middleware.Delay(err)):
				case <-ctx.Done():
					t.Errorf("%s was never handled: %v", id, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// A Redis that forgets lets a message run again, once for each time that it forgot. With the inbox behind
// it there is one effect all the same.
func TestWhenRedisForgetsTheInboxRemembers(t *testing.T) {
	t.Parallel()
	const n = 10
	for name, forget := range map[string]func(t testing.TB, s *testenv.Server){
		"flushed": func(t testing.TB, s *testenv.Server) {
			require.NoError(t, redisClient(t, s.URL).FlushAll(t.Context()).Err())
		},
		"restarted without a file": func(_ testing.TB, s *testenv.Server) { s.Kill(); s.Start() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := testenv.OwnRedis(t, "--appendonly", "no")
			d := sqliteDatabase(t)
			var e events
			var calls atomic.Int64
			during := func() {}
			cfg := middleware.IdempotentConfig{Consumer: "c", DoneTTL: time.Hour, OnEvent: e.add}
			open := func(namespace string) message.HandlerMiddleware {
				store := redisdedup.New(redisClient(t, server.URL), redisdedup.Config{Namespace: namespace})
				return must(t)(middleware.Idempotent(store, cfg))
			}
			redisAlone := chain(func(*message.Message) ([]*message.Message, error) {
				calls.Add(1)
				during()
				return nil, nil
			}, open("alone"))
			both := chain(func(msg *message.Message) ([]*message.Message, error) { return nil, d.effect(msg.Context(), msg.UUID) },
				open("both"), must(t)(middleware.Transactional(d.db, d.inbox, middleware.TransactionalConfig{Consumer: "c"})))
			for losses := 1; losses <= 2; losses++ {
				for range 3 {
					deliverUntilDone(t, redisAlone, "m", n, nil)
					deliverUntilDone(t, both, "m", n, nil)
				}
				require.EqualValues(t, losses*n, calls.Load(), "again, once for each loss")
				require.Equal(t, n, d.count(t, `SELECT count(*) FROM effects`))
				forget(t, server)
			}
			require.Zero(t, e.all()[middleware.EventRecreated])
			during = func() { forget(t, server) }
			_, err := redisAlone(delivery(t.Context(), "while it is handled", "p"))
			require.NoError(t, err)
			require.Equal(t, 1, e.all()[middleware.EventRecreated], "that it was forgotten meanwhile is told")
		})
	}
}
