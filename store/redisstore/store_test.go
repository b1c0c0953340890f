package redisstore_test

import (
	"context"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/store"
	"github.com/millrace-go/millrace/store/redisstore"
	"github.com/millrace-go/millrace/store/storetest"
)

func TestMain(m *testing.M) {
	// A client that could not dial often enough goes on trying, and ends a second after its Close.
	testenv.Main(m, testenv.IgnoreLeak(goleak.IgnoreAnyFunction("github.com/redis/go-redis/v9/internal/pool.(*ConnPool).tryDial")))
}

func client(t testing.TB, url string) *redis.Client {
	t.Helper()
	opts, err := redis.ParseURL(url)
	require.NoError(t, err)
	opts.ContextTimeoutEnabled = true
	opts.ReadTimeout = time.Minute // a Take that the client sends again takes nothing: the first has it
	opts.PoolSize = 30
	rdb := redis.NewClient(opts)
	t.Cleanup(func() { _ = rdb.Close() })
	return rdb
}

func newStore(t testing.TB, rdb redis.UniversalClient, cfg redisstore.Config) *redisstore.Store {
	t.Helper()
	s, err := redisstore.New(rdb, cfg)
	require.NoError(t, err)
	return s
}

func TestStoreKeepsTheRulesOfAStore(t *testing.T) {
	t.Parallel()
	races := 200
	if testenv.Full() {
		races = 10_000
	}
	s := newStore(t, client(t, testenv.OwnRedis(t).URL), redisstore.Config{Namespace: "billing"})
	storetest.TestStore(t, func(testing.TB) store.Store { return s }, races)
}

func TestCheckRefusesAServerThatMayForget(t *testing.T) {
	t.Parallel()
	rdb := client(t, testenv.OwnRedis(t).URL)
	s := newStore(t, rdb, redisstore.Config{Namespace: "x"})
	lax := newStore(t, rdb, redisstore.Config{Namespace: "x", WithoutFsync: true})
	set := func(name, value string) { require.NoError(t, rdb.ConfigSet(t.Context(), name, value).Err()) }

	set("appendonly", "yes")
	set("appendfsync", "always")
	set("maxmemory-policy", "noeviction")
	require.NoError(t, s.Check(t.Context()))
	require.NoError(t, lax.Check(t.Context()))

	for _, fsync := range []string{"everysec", "no"} {
		set("appendfsync", fsync)
		err := s.Check(t.Context())
		require.ErrorIs(t, err, store.ErrSetup)
		require.ErrorContains(t, err, "appendfsync is "+fsync)
		require.ErrorContains(t, err, "WithoutFsync")
		require.NoError(t, lax.Check(t.Context()))
	}
	set("maxmemory-policy", "allkeys-lru")
	set("appendonly", "no")
	for _, s := range []*redisstore.Store{s, lax} {
		err := s.Check(t.Context())
		require.ErrorIs(t, err, store.ErrSetup)
		require.ErrorContains(t, err, "maxmemory-policy is allkeys-lru")
		require.ErrorContains(t, err, "appendonly is no")
	}
}

func TestAServerThatDoesNotTellIsNotTrusted(t *testing.T) {
	t.Parallel()
	own := testenv.OwnRedis(t, "--appendonly", "yes", "--appendfsync", "always")
	admin := client(t, own.URL)
	require.NoError(t, admin.Do(t.Context(), "ACL", "SETUSER", "app", "on", ">pw-canary", "~*", "+@all", "-config", "-info").Err())
	opts, err := redis.ParseURL(own.URL)
	require.NoError(t, err)
	opts.Username, opts.Password = "app", "pw-canary"
	rdb := redis.NewClient(opts)
	t.Cleanup(func() { _ = rdb.Close() })
	err = newStore(t, rdb, redisstore.Config{Namespace: "x"}).Check(t.Context())
	require.ErrorIs(t, err, store.ErrSetup)
	require.ErrorContains(t, err, "appendfsync is not told by the server")
	require.NotContains(t, err.Error(), "canary")
}

// cutting is a connection that breaks at a command.
type cutting struct {
	at  string
	hit atomic.Int64
}

func (c *cutting) DialHook(next redis.DialHook) redis.DialHook { return next }

func (c *cutting) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if cmd.Name() == c.at {
			c.hit.Add(1)
			return io.ErrUnexpectedEOF
		}
		return next(ctx, cmd)
	}
}

func (c *cutting) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// An outage in the middle of the check must not be taken for a server that is not set up: that would end the
// subscription for good.
func TestAServerThatGoesAwayDuringTheCheckIsAnOutage(t *testing.T) {
	t.Parallel()
	own := testenv.OwnRedis(t, "--appendonly", "yes", "--appendfsync", "always")
	for _, command := range []string{"ping", "info", "config"} {
		rdb := client(t, own.URL)
		cut := &cutting{at: command}
		rdb.AddHook(cut)
		err := newStore(t, rdb, redisstore.Config{Namespace: "x"}).Check(t.Context())
		require.ErrorIs(t, err, io.ErrUnexpectedEOF, command)
		require.NotErrorIs(t, err, store.ErrSetup, command)
		require.Positive(t, cut.hit.Load(), command)
	}
}

func TestWhatWasStoredSurvivesAKillOfRedis(t *testing.T) {
	t.Parallel()
	own := testenv.OwnRedis(t, "--appendonly", "yes", "--appendfsync", "always")
	rdb := client(t, own.URL)
	s := newStore(t, rdb, redisstore.Config{Namespace: "x"})
	require.NoError(t, s.Check(t.Context()))
	rounds := 3
	if testenv.Full() {
		rounds = 20
	}
	n := 0
	for range rounds {
		for range 20 {
			e := store.Entry{Group: "billing", MessageID: strings.Repeat("m", n+1), Payload: []byte("payload")}
			require.NoError(t, s.Defer(t.Context(), e, time.Hour))
			require.NoError(t, s.Put(t.Context(), store.Letter{Entry: e, Reason: "r"}))
			n++
		}
		own.Kill()
		own.Start()
		testenv.Eventually(t, time.Minute, "Redis answers", func() bool { return rdb.Ping(t.Context()).Err() == nil })
		st, err := s.Stats(t.Context(), "billing")
		require.NoError(t, err)
		require.Equal(t, store.Stats{Stored: n, Dead: n}, st)
	}
}

func TestAFullServerDoesNothingByHalf(t *testing.T) {
	t.Parallel()
	rdb := client(t, testenv.OwnRedis(t).URL)
	s := newStore(t, rdb, redisstore.Config{Namespace: "x"})
	ctx := t.Context()
	held := store.Entry{Group: "g", MessageID: "held", OrderKey: "k"}
	require.NoError(t, s.Defer(ctx, held, 0))
	taken, _, err := s.Take(ctx, store.Take{Group: "g", Owner: "a", Limit: 1, Lease: time.Minute})
	require.NoError(t, err)
	require.Len(t, taken, 1)
	require.NoError(t, s.Put(ctx, store.Letter{Entry: store.Entry{Group: "g", MessageID: "dead"}}))
	letters, err := s.List(ctx, store.Filter{Group: "g"}, 0, 1)
	require.NoError(t, err)
	before, err := s.Stats(ctx, "g")
	require.NoError(t, err)
	keys, err := rdb.DBSize(ctx).Result()
	require.NoError(t, err)

	require.NoError(t, rdb.ConfigSet(ctx, "maxmemory", "1").Err())
	e := store.Entry{Group: "g", MessageID: "m", OrderKey: "k"}
	_, err = s.Admit(ctx, e)
	require.ErrorContains(t, err, "OOM")
	require.ErrorContains(t, s.Defer(ctx, e, 0), "OOM")
	require.ErrorContains(t, s.Put(ctx, store.Letter{Entry: e}), "OOM")
	_, err = s.Decide(ctx, store.Decision{Group: "g", Action: store.Replayed, Letters: []int64{letters[0].ID}, Who: "ann", Why: "x"})
	require.ErrorContains(t, err, "OOM")
	_, err = s.Return(ctx, held, "a", time.Hour)
	require.ErrorContains(t, err, "OOM")

	require.NoError(t, rdb.ConfigSet(ctx, "maxmemory", "0").Err())
	after, err := s.Stats(ctx, "g")
	require.NoError(t, err)
	require.Equal(t, before, after)
	left, err := rdb.DBSize(ctx).Result()
	require.NoError(t, err)
	require.Equal(t, keys, left)
}

func TestAllKeysOfAGroupShareASlot(t *testing.T) {
	t.Parallel()
	rdb := client(t, testenv.OwnRedis(t).URL)
	s := newStore(t, rdb, redisstore.Config{Namespace: "x"})
	for _, group := range []string{"billing", "a}b", "{", "ü :"} {
		require.NoError(t, s.Defer(t.Context(), store.Entry{Group: group, MessageID: "}m{", OrderKey: "{k}"}, 0))
		require.NoError(t, s.Put(t.Context(), store.Letter{Entry: store.Entry{Group: group, MessageID: "d"}}))
		keys, err := rdb.Keys(t.Context(), "*").Result()
		require.NoError(t, err)
		slots := map[string]int{}
		for _, k := range keys {
			require.True(t, strings.HasPrefix(k, "{x:store:v1:"), k)
			tag, _, ok := strings.Cut(k[1:], "}")
			require.True(t, ok)
			slots[tag]++
		}
		require.Len(t, slots, 1, keys)
		require.NoError(t, rdb.FlushAll(t.Context()).Err())
	}
}

func TestWrongConfigurationIsReportedAllAtOnce(t *testing.T) {
	t.Parallel()
	_, err := redisstore.New(nil, redisstore.Config{})
	require.ErrorContains(t, err, "no Redis client")
	require.ErrorContains(t, err, "Namespace is empty")
	for _, name := range []string{"a{b", "a}b", "a b", "a\nb", strings.Repeat("x", 129)} {
		_, err := redisstore.New(client(t, "redis://127.0.0.1:1/0"), redisstore.Config{Namespace: name})
		require.Error(t, err, name)
	}
}
