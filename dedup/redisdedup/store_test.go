package redisdedup_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/millrace-go/millrace/dedup"
	"github.com/millrace-go/millrace/dedup/deduptest"
	"github.com/millrace-go/millrace/dedup/redisdedup"
	"github.com/millrace-go/millrace/internal/fault/proxy"
	"github.com/millrace-go/millrace/internal/testenv"
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
	rdb := redis.NewClient(opts)
	t.Cleanup(func() { _ = rdb.Close() })
	return rdb
}

// viaProxy is a client with go-redis's defaults (it sends again what got no answer) behind a proxy.
func viaProxy(t testing.TB, url string) (*redis.Client, *proxy.Proxy) {
	t.Helper()
	opts, err := redis.ParseURL(url)
	require.NoError(t, err)
	p := proxy.New(t, opts.Addr)
	opts.Addr = p.Addr
	rdb := redis.NewClient(opts)
	t.Cleanup(func() { _ = rdb.Close() })
	return rdb, p
}

func request(owner string) dedup.Request {
	return dedup.Request{Owner: owner, Lease: time.Minute, TTL: time.Hour, Digest: "d"}
}

func TestStoreKeepsTheRulesOfAStore(t *testing.T) {
	t.Parallel()
	rdb := client(t, testenv.Redis(t))
	prefix := testenv.RedisPrefix(t)
	deduptest.TestStore(t, func(testing.TB) dedup.Store {
		return redisdedup.New(rdb, redisdedup.Config{Namespace: prefix + "suite"})
	})
}

func TestTwoNamespacesAreTwoMemories(t *testing.T) {
	t.Parallel()
	rdb, prefix := client(t, testenv.Redis(t)), testenv.RedisPrefix(t)
	for _, name := range []string{"a", "b"} {
		s := redisdedup.New(rdb, redisdedup.Config{Namespace: prefix + name})
		a, err := s.Claim(t.Context(), dedup.Key{Consumer: "c", MessageID: "m"}, request(name))
		require.NoError(t, err)
		require.Equal(t, dedup.Claimed, a.Verdict)
	}
}

// A client that gets no answer sends the command again: to ourselves, our own claim must not look like
// that of another.
func TestClaimWhoseAnswerIsLostIsClaimedAllTheSame(t *testing.T) {
	t.Parallel()
	for _, op := range []string{"claim", "renew", "done", "release"} {
		t.Run(op, func(t *testing.T) {
			t.Parallel()
			direct, prefix := client(t, testenv.Redis(t)), testenv.RedisPrefix(t)
			rdb, p := viaProxy(t, testenv.Redis(t))
			s := redisdedup.New(rdb, redisdedup.Config{Namespace: prefix + "lost"})
			key := dedup.Key{Consumer: "c", MessageID: "m"}
			warm := dedup.Key{Consumer: "c", MessageID: "warm"}
			_, err := s.Claim(t.Context(), warm, request("warm")) // the script is known from now on
			require.NoError(t, err)
			_, err = s.Renew(t.Context(), warm, "warm", time.Minute)
			require.NoError(t, err)
			require.NoError(t, s.Release(t.Context(), warm, "warm", false))
			_, err = s.Done(t.Context(), warm, "warm", nil, time.Hour)
			require.NoError(t, err)
			if op != "claim" {
				_, err := s.Claim(t.Context(), key, request("me"))
				require.NoError(t, err)
			}

			record := prefix + "lost:idem:v1:c:" + recordHash
			before := direct.HGetAll(t.Context(), record).Val()
			lost := make(chan struct{})
			p.OnBytes(true, []byte(recordHash), func() { // the request gets through, its answer does not
				p.BlackholeReplies(true)
				go func() {
					defer close(lost)
					for maps.Equal(before, direct.HGetAll(context.Background(), record).Val()) {
						runtime.Gosched()
					}
					p.Cut()
					p.BlackholeReplies(false)
				}()
			})
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			switch op {
			case "claim":
				a, err := s.Claim(ctx, key, request("me"))
				require.NoError(t, err)
				require.Equal(t, dedup.Claimed, a.Verdict)
				require.EqualValues(t, 1, a.Fence)
				require.Equal(t, 1, a.Attempts)
			case "renew":
				// Another lease than the claim's: in the same millisecond the record would not change.
				ok, err := s.Renew(ctx, key, "me", 2*time.Minute)
				require.NoError(t, err)
				require.True(t, ok)
			case "done":
				m, err := s.Done(ctx, key, "me", []byte("r"), time.Hour)
				require.NoError(t, err)
				require.Equal(t, dedup.Marked, m)
			case "release":
				require.NoError(t, s.Release(ctx, key, "me", false))
				a, err := s.Claim(ctx, key, request("other"))
				require.NoError(t, err)
				require.Equal(t, dedup.Claimed, a.Verdict)
			}
			select {
			case <-lost:
			case <-ctx.Done():
				t.Fatal("no answer was lost: the test tests nothing")
			}
		})
	}
}

// recordHash is the hashed id of message "m" as it appears in keys.
const recordHash = "YsZqel3XDDFGYYBjw0TlMe"

func TestScriptsForgottenByTheServerAreSentAgain(t *testing.T) {
	t.Parallel()
	own := testenv.OwnRedis(t)
	rdb := client(t, own.URL)
	s := redisdedup.New(rdb, redisdedup.Config{Namespace: "x"})
	key := dedup.Key{Consumer: "c", MessageID: "m"}
	for i := range 3 {
		require.NoError(t, rdb.ScriptFlush(t.Context()).Err())
		a, err := s.Claim(t.Context(), key, request("o"))
		require.NoError(t, err)
		require.Equal(t, dedup.Claimed, a.Verdict, i)
	}
}

func TestRecordsNeverOutliveTheirTimeInRedis(t *testing.T) {
	t.Parallel()
	rdb, prefix := client(t, testenv.Redis(t)), testenv.RedisPrefix(t)
	s := redisdedup.New(rdb, redisdedup.Config{Namespace: prefix + "ttl"})
	ctx := t.Context()
	_, err := s.Claim(ctx, dedup.Key{Consumer: "c", MessageID: "claimed"}, request("o"))
	require.NoError(t, err)
	_, err = s.Done(ctx, dedup.Key{Consumer: "c", MessageID: "done"}, "o", nil, time.Hour)
	require.NoError(t, err)
	_, err = s.Claim(ctx, dedup.Key{Consumer: "c", MessageID: "released"}, request("o"))
	require.NoError(t, err)
	require.NoError(t, s.Release(ctx, dedup.Key{Consumer: "c", MessageID: "released"}, "o", true))
	keys, err := rdb.Keys(ctx, prefix+"*").Result()
	require.NoError(t, err)
	require.Len(t, keys, 3)
	for _, k := range keys {
		ttl, err := rdb.PTTL(ctx, k).Result()
		require.NoError(t, err)
		require.Greater(t, ttl, 59*time.Minute, k)
		require.LessOrEqual(t, ttl, time.Hour, k)
	}
}

func TestAFullServerFailsClosed(t *testing.T) {
	t.Parallel()
	own := testenv.OwnRedis(t)
	rdb := client(t, own.URL)
	s := redisdedup.New(rdb, redisdedup.Config{Namespace: "x"})
	require.NoError(t, s.Check(t.Context()))
	require.NoError(t, rdb.ConfigSet(t.Context(), "maxmemory", "1").Err())
	_, err := s.Claim(t.Context(), dedup.Key{Consumer: "c", MessageID: "m"}, request("o"))
	require.ErrorContains(t, err, "OOM")
	require.NoError(t, rdb.ConfigSet(t.Context(), "maxmemory", "0").Err())
	a, err := s.Claim(t.Context(), dedup.Key{Consumer: "c", MessageID: "m"}, request("o"))
	require.NoError(t, err)
	require.Equal(t, 1, a.Attempts, "the refused claim left nothing behind")
}

func TestCheckRefusesAServerThatEvicts(t *testing.T) {
	t.Parallel()
	own := testenv.OwnRedis(t)
	rdb := client(t, own.URL)
	s := redisdedup.New(rdb, redisdedup.Config{Namespace: "x"})
	require.NoError(t, s.Check(t.Context()))
	for _, policy := range []string{"allkeys-lru", "volatile-ttl", "allkeys-random"} {
		require.NoError(t, rdb.ConfigSet(t.Context(), "maxmemory-policy", policy).Err())
		err := s.Check(t.Context())
		require.ErrorContains(t, err, policy)
		require.ErrorContains(t, err, "set maxmemory-policy to noeviction")
	}
}

func TestCheckOnlyWarnsOfWhatAServerDoesNotTell(t *testing.T) {
	t.Parallel()
	own := testenv.OwnRedis(t)
	admin := client(t, own.URL)
	require.NoError(t, admin.Do(t.Context(), "ACL", "SETUSER", "app", "on", ">pw-canary", "~*", "+@all", "-config", "-info").Err())
	opts, err := redis.ParseURL(own.URL)
	require.NoError(t, err)
	opts.Username, opts.Password = "app", "pw-canary"
	rdb := redis.NewClient(opts)
	t.Cleanup(func() { _ = rdb.Close() })

	var log bytes.Buffer
	s := redisdedup.New(rdb, redisdedup.Config{Namespace: "x", Logger: slog.New(slog.NewTextHandler(&log, nil))})
	require.NoError(t, s.Check(t.Context()))
	require.Contains(t, log.String(), "eviction policy")
	require.Contains(t, log.String(), "version")
	require.Contains(t, log.String(), "ContextTimeoutEnabled")
	require.NotContains(t, log.String(), "canary")
}

func TestCheckReportsAServerThatIsAway(t *testing.T) {
	t.Parallel()
	rdb, p := viaProxy(t, testenv.Redis(t))
	p.Refuse(true)
	s := redisdedup.New(rdb, redisdedup.Config{Namespace: "x"})
	require.ErrorContains(t, s.Check(t.Context()), "redisdedup: check")
}

// cutting is a connection that breaks at a command.
type cutting struct{ at string }

func (c cutting) DialHook(next redis.DialHook) redis.DialHook { return next }

func (c cutting) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if cmd.Name() == c.at {
			return io.ErrUnexpectedEOF
		}
		return next(ctx, cmd)
	}
}

func (c cutting) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// A check that was not answered has found nothing: a server that evicts would pass.
func TestAServerThatGoesAwayDuringTheCheckHasNotPassedIt(t *testing.T) {
	t.Parallel()
	for _, command := range []string{"ping", "info", "config"} {
		rdb := client(t, testenv.Redis(t))
		rdb.AddHook(cutting{command})
		err := redisdedup.New(rdb, redisdedup.Config{Namespace: "x"}).Check(t.Context())
		require.ErrorIs(t, err, io.ErrUnexpectedEOF, command)
	}
}

func TestWrongConfigurationIsReportedAllAtOnceAndByEveryMethod(t *testing.T) {
	t.Parallel()
	s := redisdedup.New(nil, redisdedup.Config{})
	require.ErrorContains(t, s.Validate(), "no Redis client")
	require.ErrorContains(t, s.Validate(), "Namespace is empty")
	ctx, key := t.Context(), dedup.Key{Consumer: "c", MessageID: "m"}
	require.ErrorIs(t, s.Check(ctx), s.Validate())
	_, err := s.Claim(ctx, key, request("o"))
	require.ErrorIs(t, err, s.Validate())
	_, err = s.Renew(ctx, key, "o", time.Second)
	require.ErrorIs(t, err, s.Validate())
	_, err = s.Done(ctx, key, "o", nil, time.Second)
	require.ErrorIs(t, err, s.Validate())
	require.ErrorIs(t, s.Release(ctx, key, "o", false), s.Validate())
	for _, name := range []string{"a{b", "a}b", "a b", "a\nb", strings.Repeat("x", 129)} {
		require.Error(t, redisdedup.New(client(t, "redis://127.0.0.1:1/0"), redisdedup.Config{Namespace: name}).Validate(), name)
	}
	require.NoError(t, redisdedup.New(client(t, "redis://127.0.0.1:1/0"), redisdedup.Config{Namespace: "shop:billing"}).Validate())
}

func TestClaimsOfManyConnectionsHaveOneWinnerEach(t *testing.T) {
	t.Parallel()
	const clients, messages = 8, 50
	prefix := testenv.RedisPrefix(t)
	var mu sync.Mutex
	winners := map[string]int{}
	var wg sync.WaitGroup
	for c := range clients {
		s := redisdedup.New(client(t, testenv.Redis(t)), redisdedup.Config{Namespace: prefix + "many"})
		wg.Go(func() {
			for m := range messages {
				id := fmt.Sprint(m)
				a, err := s.Claim(t.Context(), dedup.Key{Consumer: "c", MessageID: id}, request(fmt.Sprint(c)))
				if err != nil {
					t.Error(err)
					return
				}
				if a.Verdict == dedup.Claimed {
					mu.Lock()
					winners[id]++
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	require.Len(t, winners, messages)
	for id, n := range winners {
		require.Equal(t, 1, n, "message %s", id)
	}
}
