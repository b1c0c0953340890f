package delayed_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	_ "github.com/go-sql-driver/mysql"
	_ "github.com/jackc/pgx/v5/stdlib"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	_ "modernc.org/sqlite"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/dedup"
	"github.com/millrace-go/millrace/delayed"
	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/middleware"
	"github.com/millrace-go/millrace/millracetest"
	"github.com/millrace-go/millrace/store"
	"github.com/millrace-go/millrace/store/redisstore"
	"github.com/millrace-go/millrace/store/sqlstore"
)

func TestMain(m *testing.M) { testenv.Main(m, testenv.Role("consumer that is killed", killedConsumer)) }

var errHandler = errors.New("the handler failed")

func openStore(t testing.TB, driver, dsn string) store.Store {
	t.Helper()
	sqlDB, err := sql.Open(driver, dsn)
	require.NoError(t, err)
	sqlDB.SetMaxOpenConns(30)
	t.Cleanup(func() { _ = sqlDB.Close() })
	db := millrace.SQL(sqlDB)
	require.NoError(t, millrace.Migrate(t.Context(), db, sqlstore.Migrations()))
	s, err := sqlstore.New(db)
	require.NoError(t, err)
	return s
}

// lenient is a store in the tests' Redis, which does not write to disk.
type lenient struct{ store.Store }

func (lenient) Check(context.Context) error { return nil }

var stores = map[string]func(t testing.TB) store.Store{
	"memory":   func(testing.TB) store.Store { return new(store.Memory) },
	"postgres": func(t testing.TB) store.Store { return openStore(t, "pgx", testenv.Postgres(t)) },
	"mariadb":  func(t testing.TB) store.Store { return openStore(t, "mysql", testenv.MariaDB(t)) },
	"sqlite": func(t testing.TB) store.Store {
		return openStore(t, "sqlite", "file:"+testenv.SQLite(t)+"?_pragma=journal_mode(wal)&_pragma=busy_timeout(5000)")
	},
	"redis": func(t testing.TB) store.Store {
		opts, err := redis.ParseURL(testenv.Redis(t))
		require.NoError(t, err)
		opts.ReadTimeout = time.Minute // as in quickConfig; and a Take that the client sends again takes nothing
		rdb := redis.NewClient(opts)
		t.Cleanup(func() { _ = rdb.Close() })
		s, err := redisstore.New(rdb, redisstore.Config{Namespace: testenv.RedisPrefix(t) + "store"})
		require.NoError(t, err)
		return lenient{s}
	},
}

// eachStore runs a test on every kind of store.
func eachStore(t *testing.T, test func(t *testing.T, st store.Store)) {
	t.Helper()
	for name, open := range stores {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, open(t))
		})
	}
}

// quick is a chain that loses no time. Change, if set, changes its configuration.
func quick(t testing.TB, st store.Store, change func(*middleware.Config)) []message.HandlerMiddleware {
	t.Helper()
	cfg := middleware.Config{
		Dedup:      new(dedup.Memory),
		Idempotent: middleware.IdempotentConfig{BusyWait: 20 * time.Second},
		Retry:      middleware.RetryConfig{MaxAttempts: 2, InitialDelay: time.Millisecond},
		Delayed:    middleware.DelayedConfig{Store: st, MaxAttempts: 5, Delays: []time.Duration{5 * time.Millisecond}, Timeout: time.Minute},
		Poison:     middleware.PoisonConfig{Store: st},
	}
	if change != nil {
		change(&cfg)
	}
	chain, err := middleware.Recommended(cfg)
	require.NoError(t, err)
	return chain
}

func quickConfig(handler string) delayed.Config {
	// Patient with a store on a busy machine: an attempt whose end could not be stored is not counted.
	return delayed.Config{Handler: handler, Poll: 50 * time.Millisecond, Lease: 3 * time.Minute, Timeout: time.Minute}
}

// consumer is one process with one handler of the topic orders.
type consumer struct {
	router *message.Router
	cancel context.CancelFunc
	ended  chan error
}

func (c *consumer) stop(t testing.TB) {
	t.Helper()
	c.cancel()
	select {
	case err := <-c.ended:
		require.NoError(t, err)
		c.ended <- nil
	case <-time.After(2 * time.Minute):
		t.Fatal("the router does not stop")
	}
}

// consume runs a handler until the test ends.
func consume(t testing.TB, sub message.Subscriber, st store.Delayed, cfg delayed.Config,
	h message.NoPublishHandlerFunc, chain ...message.HandlerMiddleware) *consumer {
	t.Helper()
	sub, err := delayed.Subscriber(sub, st, cfg)
	require.NoError(t, err)
	return consumeFrom(t, sub, cfg.Handler, h, chain...)
}

// consumeFrom is consume with a subscriber of the test's own.
func consumeFrom(t testing.TB, sub message.Subscriber, handler string, h message.NoPublishHandlerFunc, chain ...message.HandlerMiddleware) *consumer {
	t.Helper()
	r, err := message.NewRouter(message.RouterConfig{CloseTimeout: 60 * time.Second}, watermill.NopLogger{})
	require.NoError(t, err)
	r.AddMiddleware(chain...)
	r.AddConsumerHandler(handler, "orders", sub, h)
	ctx, cancel := context.WithCancel(context.Background())
	c := &consumer{router: r, cancel: cancel, ended: make(chan error, 1)}
	go func() { c.ended <- millrace.RunRouter(ctx, r) }()
	<-r.Running()
	t.Cleanup(func() { c.stop(t) })
	return c
}

// calls notes the calls of a handler.
type calls struct {
	mu  sync.Mutex
	got []string
}

func (c *calls) add(what ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.got = append(c.got, fmt.Sprint(what...))
}

func (c *calls) all() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]string(nil), c.got...)
}

func (c *calls) count() int { return len(c.all()) }

func settle(t testing.TB, b *millracetest.Broker) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	require.NoError(t, b.Settle(ctx))
}

// quiet waits until the broker has nothing in hand and nothing is delayed.
func quiet(t testing.TB, b *millracetest.Broker, st store.Delayed, group string) {
	t.Helper()
	settle(t, b)
	testenv.Eventually(t, 2*time.Minute, "nothing is delayed", func() bool { return stats(t, st, group).Stored == 0 })
}

func stats(t testing.TB, st store.Delayed, group string) store.Stats {
	t.Helper()
	s, err := st.Stats(t.Context(), group)
	require.NoError(t, err)
	return s
}

func order(id, key string) *message.Message {
	m := message.NewMessage(id, []byte("payload \x00\xff of "+id))
	m.Metadata.Set("name", "value of "+id)
	if key != "" {
		m.Metadata.Set("millrace_key", key)
	}
	return m
}
