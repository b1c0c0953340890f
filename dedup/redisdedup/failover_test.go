package redisdedup_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/dedup"
	"github.com/millrace-go/millrace/dedup/deduptest"
	"github.com/millrace-go/millrace/dedup/redisdedup"
	"github.com/millrace-go/millrace/internal/testenv"
)

// patience is for a failover on a machine that is busy with other tests.
const patience = 2 * time.Minute

// answerTime is so long that no call is sent again that was carried out: the second answer is another one. A
// dead server is noticed at once by its connections.
const answerTime = time.Minute

// replicated is a Redis whose master can be lost.
type replicated struct {
	rdb redis.UniversalClient
	// pairs are masters with their replicas; a key's record is on the pair of.
	pairs [][2]*testenv.Server
	of    func(t testing.TB, key string) int
}

var replicatedKinds = map[string]func(t testing.TB) replicated{
	"cluster": func(t testing.TB) replicated {
		c := testenv.RedisCluster(t)
		rdb := redis.NewClusterClient(&redis.ClusterOptions{Addrs: c.Addrs, ContextTimeoutEnabled: true, ReadTimeout: answerTime})
		t.Cleanup(func() { _ = rdb.Close() })
		r := replicated{rdb: rdb, of: c.MasterOf}
		for i := range c.Masters {
			r.pairs = append(r.pairs, [2]*testenv.Server{c.Masters[i], c.Replicas[i]})
		}
		return r
	},
	"sentinel": func(t testing.TB) replicated {
		s := testenv.RedisSentinel(t)
		rdb := redis.NewFailoverClient(&redis.FailoverOptions{
			MasterName: s.Name, SentinelAddrs: s.Addrs, ContextTimeoutEnabled: true, ReadTimeout: answerTime,
		})
		t.Cleanup(func() { _ = rdb.Close() })
		return replicated{rdb: rdb, pairs: [][2]*testenv.Server{{s.Master, s.Replica}}, of: func(testing.TB, string) int { return 0 }}
	},
}

// A store on several servers keeps the rules; and when a master dies, what its replica had is remembered,
// nothing is claimed meanwhile, and it goes on by itself.
func TestTheStoreOutlivesTheDeathOfAMaster(t *testing.T) {
	t.Parallel()
	for name, start := range replicatedKinds {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := start(t)
			s := redisdedup.New(r.rdb, redisdedup.Config{Namespace: "x"})
			require.NoError(t, s.Check(t.Context()))
			t.Run("rules", func(t *testing.T) {
				deduptest.TestStore(t, func(testing.TB) dedup.Store { return s })
			})

			const n = 90
			key := func(i int) dedup.Key { return dedup.Key{Consumer: "c", MessageID: fmt.Sprint("m", i)} }
			together(n, func(i int) { // a third done, a third released, a third claimed
				a, err := s.Claim(t.Context(), key(i), claimForLong("before"))
				if err != nil || a.Verdict != dedup.Claimed {
					t.Errorf("claim %d: %+v, %v", i, a, err)
				}
				switch i % 3 {
				case 0:
					_, err = s.Done(t.Context(), key(i), "before", fmt.Append(nil, "r", i), time.Hour)
				case 1:
					err = s.Release(t.Context(), key(i), "before", false)
				}
				if err != nil {
					t.Errorf("end %d: %v", i, err)
				}
			})
			for _, pair := range r.pairs {
				testenv.CaughtUp(t, pair[0])
			}
			r.pairs[0][0].Kill()
			together(n, func(i int) {
				var a dedup.Answer
				within(t, func(ctx context.Context) (err error) {
					a, err = s.Claim(ctx, key(i), claimForLong("after"))
					return err
				})
				want := []dedup.Verdict{dedup.Handled, dedup.Claimed, dedup.Busy}[i%3]
				if a.Verdict != want {
					t.Errorf("claim %d: %+v, want %d", i, a, want)
				}
				switch {
				case i%3 == 0 && string(a.Result) != fmt.Sprint("r", i):
					t.Errorf("claim %d: result %q", i, a.Result)
				case i%3 == 1 && (a.Fence != 2 || a.Attempts != 2):
					t.Errorf("claim %d: %+v, want fence 2", i, a)
				}
			})
		})
	}
}

// What a master had not handed on when it died is forgotten. A message may then be handled twice, and its
// first owner is told so where that can be known: it lost if another has claimed the message, and its
// mark says Recreated if nobody has.
func TestClaimsThatNoReplicaHadAreForgottenAndTheirOwnersToldSo(t *testing.T) {
	t.Parallel()
	for name, start := range replicatedKinds {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := start(t)
			s := redisdedup.New(r.rdb, redisdedup.Config{Namespace: "x"})
			pair := r.of(t, "x:idem:v1:c:"+recordHash)
			taken := dedup.Key{Consumer: "c", MessageID: "m"}
			alone := taken // another record of the same server
			for i := 0; alone == taken; i++ {
				k := dedup.Key{Consumer: fmt.Sprint("c", i), MessageID: "m"}
				if r.of(t, fmt.Sprintf("x:idem:v1:%s:%s", k.Consumer, recordHash)) == pair {
					alone = k
				}
			}
			testenv.Detach(t, r.pairs[pair][0], r.pairs[pair][1])
			for _, key := range []dedup.Key{taken, alone} {
				a, err := s.Claim(t.Context(), key, request("old"))
				require.NoError(t, err)
				require.EqualValues(t, 1, a.Fence)
			}
			r.pairs[pair][0].Kill()
			var again dedup.Answer
			within(t, func(ctx context.Context) (err error) {
				again, err = s.Claim(ctx, taken, request("new"))
				return err
			})
			require.Equal(t, dedup.Claimed, again.Verdict)
			require.EqualValues(t, 1, again.Fence, "fences do not go on over a failover that forgets")
			m, err := s.Done(t.Context(), taken, "old", nil, time.Hour)
			require.NoError(t, err)
			require.Equal(t, dedup.Lost, m)
			m, err = s.Done(t.Context(), alone, "old", nil, time.Hour)
			require.NoError(t, err)
			require.Equal(t, dedup.Recreated, m)
		})
	}
}

// within repeats a call until it is answered. Each try has the time that middleware gives it.
func within(t testing.TB, call func(ctx context.Context) error) {
	end := time.Now().Add(patience)
	for {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		err := call(ctx)
		cancel()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Errorf("no answer for %s: %v", patience, err)
			return
		}
	}
}

// claimForLong holds over any failover.
func claimForLong(owner string) dedup.Request {
	return dedup.Request{Owner: owner, Lease: time.Hour, TTL: time.Hour, Digest: "d"}
}

func together(n int, do func(i int)) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { do(i) })
	}
	wg.Wait()
}
