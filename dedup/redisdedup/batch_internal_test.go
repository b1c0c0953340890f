package redisdedup

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/dedup"
	"github.com/millrace-go/millrace/internal/testenv"
)

// gate stands between the store and its client. While it is shut, round trips wait before they begin; each
// is counted with the number of its calls.
type gate struct {
	mu    sync.Mutex
	shut  chan struct{}
	trips []int
}

func (g *gate) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut = make(chan struct{})
}

func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	close(g.shut)
}

func (g *gate) seen() []int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return append([]int(nil), g.trips...)
}

func (g *gate) forget() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.trips = nil
}

func (g *gate) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) { return next(ctx, network, addr) }
}

func (g *gate) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }

func (g *gate) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if cmds[0].Name() != "evalsha" && cmds[0].Name() != "eval" { // the greeting of a new connection
			return next(ctx, cmds)
		}
		g.mu.Lock()
		g.trips = append(g.trips, len(cmds))
		shut := g.shut
		g.mu.Unlock()
		if shut != nil {
			<-shut
		}
		return next(ctx, cmds)
	}
}

// gated is a store behind a gate, which knows its scripts already.
func gated(t testing.TB) (*Store, *gate) {
	t.Helper()
	opts, err := redis.ParseURL(testenv.Redis(t))
	require.NoError(t, err)
	opts.ContextTimeoutEnabled = true
	rdb := redis.NewClient(opts)
	t.Cleanup(func() { _ = rdb.Close() })
	for _, script := range []*redis.Script{claim, renew, done, release} {
		require.NoError(t, script.Load(t.Context(), rdb).Err())
	}
	g := &gate{}
	rdb.AddHook(g)
	return New(rdb, Config{Namespace: testenv.RedisPrefix(t) + "batch"}), g
}

func (s *Store) waiting() int {
	b := s.shards.of(context.Background(), "")
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.waiting)
}

func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	testenv.Eventually(t, 30*time.Second, what, cond)
}

func keyOf(i int) dedup.Key { return dedup.Key{Consumer: "c", MessageID: fmt.Sprint("m", i)} }

func askFor(owner string) dedup.Request {
	return dedup.Request{Owner: owner, Lease: time.Minute, TTL: time.Hour}
}

// occupy lets as many calls depart as may, so that what comes now gathers. They end when the gate opens.
func occupy(t testing.TB, s *Store, g *gate, wg *sync.WaitGroup) {
	t.Helper()
	g.close()
	for i := range maxFlights {
		wg.Go(func() {
			_, err := s.Claim(context.Background(), keyOf(-1-i), askFor("occupant"))
			if err != nil {
				t.Error(err)
			}
		})
	}
	eventually(t, "all flights are under way", func() bool { return len(g.seen()) == maxFlights })
}

func TestCallsMadeWhileOthersAreUnderWayShareARoundTrip(t *testing.T) {
	t.Parallel()
	s, g := gated(t)
	var wg sync.WaitGroup
	occupy(t, s, g, &wg)
	const n = 100
	for i := range n {
		wg.Go(func() {
			a, err := s.Claim(t.Context(), keyOf(i), askFor("me"))
			if err != nil || a.Verdict != dedup.Claimed || a.Fence != 1 {
				t.Errorf("claim %d: %+v, %v", i, a, err)
			}
		})
	}
	eventually(t, "all have gathered", func() bool { return s.waiting() == n })
	require.Len(t, g.seen(), maxFlights)
	g.open()
	wg.Wait()
	trips := g.seen()
	require.Len(t, trips, maxFlights+1)
	require.Equal(t, n, trips[maxFlights])

	// Each heard its own answer: marks with a result of their own, then a claim tells it.
	for i := range n {
		wg.Go(func() {
			m, err := s.Done(t.Context(), keyOf(i), "me", fmt.Append(nil, "result ", i), time.Hour)
			if err != nil || m != dedup.Marked {
				t.Errorf("done %d: %v, %v", i, m, err)
			}
		})
	}
	wg.Wait()
	for i := range n {
		wg.Go(func() {
			a, err := s.Claim(t.Context(), keyOf(i), askFor("other"))
			if err != nil || string(a.Result) != fmt.Sprint("result ", i) {
				t.Errorf("claim %d: %+v, %v", i, a, err)
			}
		})
	}
	wg.Wait()
}

func TestACallThatIsAloneDepartsAtOnce(t *testing.T) {
	t.Parallel()
	s, g := gated(t)
	for i := range 3 {
		_, err := s.Claim(t.Context(), keyOf(i), askFor("me"))
		require.NoError(t, err)
	}
	require.Equal(t, []int{1, 1, 1}, g.seen())
}

func TestARoundTripHasABoundedNumberOfCalls(t *testing.T) {
	t.Parallel()
	s, g := gated(t)
	var wg sync.WaitGroup
	occupy(t, s, g, &wg)
	const n = 2*maxBatch + 10
	for i := range n {
		wg.Go(func() {
			if _, err := s.Claim(t.Context(), keyOf(i), askFor("me")); err != nil {
				t.Error(err)
			}
		})
	}
	eventually(t, "all have gathered", func() bool { return s.waiting() == n })
	g.open()
	wg.Wait()
	require.ElementsMatch(t, []int{1, 1, 1, 1, maxBatch, maxBatch, 10}, g.seen())
}

// Whoever waits for a place and gives up is never sent; whoever is on its way and gives up harms nobody.
func TestACallerWhoLeavesDoesNotHarmTheOthers(t *testing.T) {
	t.Parallel()
	s, g := gated(t)
	var wg sync.WaitGroup
	occupy(t, s, g, &wg)
	leave, cancel := context.WithCancel(t.Context())
	left := make(chan error, 1)
	for i := range 10 {
		ctx := t.Context()
		if i == 5 {
			ctx = leave
		}
		wg.Go(func() {
			a, err := s.Claim(ctx, keyOf(i), askFor("me"))
			switch {
			case i == 5:
				left <- err
			case err != nil || a.Verdict != dedup.Claimed:
				t.Errorf("claim %d: %+v, %v", i, a, err)
			}
		})
	}
	eventually(t, "all have gathered", func() bool { return s.waiting() == 10 })
	cancel()
	require.ErrorIs(t, <-left, context.Canceled, "at once")
	g.open()
	wg.Wait()
	require.Equal(t, []int{1, 1, 1, 1, 9}, g.seen())
	a, err := s.Claim(t.Context(), keyOf(5), askFor("other"))
	require.NoError(t, err)
	require.Equal(t, 1, a.Attempts, "was never sent")

	// The same on the way. The one who leaves opened the flight: it is not his to cancel.
	onTheWay := make([]chan error, 3)
	g.forget()
	occupy(t, s, g, &wg)
	leave, cancel = context.WithCancel(t.Context())
	for i := range onTheWay {
		onTheWay[i] = make(chan error, 1)
		ctx := t.Context()
		if i == 0 {
			ctx = leave
		}
		wg.Go(func() {
			_, err := s.Claim(ctx, keyOf(20+i), askFor("me"))
			onTheWay[i] <- err
		})
		eventually(t, "in order", func() bool { return s.waiting() == i+1 })
	}
	g.mu.Lock()
	old := g.shut
	g.shut = make(chan struct{}) // the four depart, the next flight waits
	g.mu.Unlock()
	close(old)
	eventually(t, "the batch is under way", func() bool { return len(g.seen()) == maxFlights+1 })
	cancel()
	require.ErrorIs(t, <-onTheWay[0], context.Canceled)
	g.open()
	require.NoError(t, <-onTheWay[1])
	require.NoError(t, <-onTheWay[2])
	wg.Wait()
}

// A claim whose caller left may still be made. The release that follows must come after it, or the message
// is blocked for a lease.
func TestAReleaseDoesNotOvertakeTheClaimThatWasGivenUp(t *testing.T) {
	t.Parallel()
	s, g := gated(t)
	g.close()
	ctx, cancel := context.WithCancel(t.Context())
	gaveUp, released := make(chan error, 1), make(chan error, 1)
	go func() { _, err := s.Claim(ctx, keyOf(1), askFor("me")); gaveUp <- err }()
	eventually(t, "the claim is under way", func() bool { return len(g.seen()) == 1 })
	cancel()
	require.ErrorIs(t, <-gaveUp, context.Canceled)
	go func() { released <- s.Release(t.Context(), keyOf(1), "me", false) }()
	eventually(t, "the release waits", func() bool { return s.waiting() == 1 })
	g.mu.Lock()
	require.Equal(t, []int{1}, g.trips, "three flights were free")
	g.mu.Unlock()
	g.open()
	require.NoError(t, <-released)
	a, err := s.Claim(t.Context(), keyOf(1), askFor("other"))
	require.NoError(t, err)
	require.Equal(t, dedup.Claimed, a.Verdict)
	require.EqualValues(t, 2, a.Fence, "the claim had been made")
}

func TestOneBrokenRecordFailsAlone(t *testing.T) {
	t.Parallel()
	s, g := gated(t)
	require.NoError(t, s.rdb.Set(t.Context(), recordKey(s.cfg.Namespace, keyOf(3)), "not a hash", time.Minute).Err())
	var wg sync.WaitGroup
	occupy(t, s, g, &wg)
	for i := range 6 {
		wg.Go(func() {
			_, err := s.Claim(t.Context(), keyOf(i), askFor("me"))
			if (err != nil) != (i == 3) {
				t.Errorf("claim %d: %v", i, err)
			}
		})
	}
	eventually(t, "all have gathered", func() bool { return s.waiting() == 6 })
	g.open()
	wg.Wait()
}

// lossy loses the answers of round trips: the calls are made and nobody hears of it.
type lossy struct {
	gate
	mu   sync.Mutex
	lose bool
	mute bool // not even the commands are told
}

var errLost = errors.New("the answer was lost")

func (l *lossy) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return l.gate.ProcessPipelineHook(func(ctx context.Context, cmds []redis.Cmder) error {
		err := next(ctx, cmds)
		l.mu.Lock()
		defer l.mu.Unlock()
		if !l.lose || cmds[0].Name() != "evalsha" {
			return err
		}
		for _, c := range cmds {
			if l.mute {
				c.(*redis.Cmd).SetVal(nil)
			} else {
				c.SetErr(errLost)
			}
		}
		return errLost
	})
}

// Nobody on a flight whose answer is lost may believe that it failed, or that it succeeded: each repeats
// its call and is told the truth.
func TestALostAnswerIsAnErrorForEachOnTheFlightAndARepetitionTellsTheTruth(t *testing.T) {
	t.Parallel()
	for _, mute := range []bool{false, true} {
		t.Run(fmt.Sprint("mute ", mute), func(t *testing.T) { t.Parallel(); lostAnswer(t, mute) })
	}
}

func lostAnswer(t *testing.T, mute bool) {
	opts, err := redis.ParseURL(testenv.Redis(t))
	require.NoError(t, err)
	rdb := redis.NewClient(opts)
	t.Cleanup(func() { _ = rdb.Close() })
	l := &lossy{mute: mute}
	rdb.AddHook(l)
	s := New(rdb, Config{Namespace: testenv.RedisPrefix(t) + "lost"})
	_, err = s.Claim(t.Context(), keyOf(0), askFor("me")) // the script is known from now on
	require.NoError(t, err)
	l.forget()

	var wg sync.WaitGroup
	l.close()
	const n = maxFlights + 20
	l.lose = true
	results := make(chan error, n)
	for i := range n {
		wg.Go(func() {
			_, err := s.Claim(t.Context(), keyOf(1+i), askFor("me"))
			results <- err
		})
	}
	eventually(t, "all are there", func() bool { return len(l.seen()) == maxFlights && s.waiting() == n-maxFlights })
	l.open()
	wg.Wait()
	for range n {
		require.ErrorIs(t, <-results, errLost)
	}
	l.mu.Lock()
	l.lose = false
	l.mu.Unlock()
	for i := range n {
		a, err := s.Claim(t.Context(), keyOf(1+i), askFor("me"))
		require.NoError(t, err)
		require.Equal(t, dedup.Claimed, a.Verdict)
		require.Equal(t, 1, a.Attempts)
	}
}

// A flight lasts as long as its most patient passenger waits, not as the first does.
func TestAnImpatientCallerDoesNotEndTheFlight(t *testing.T) {
	t.Parallel()
	hour, minute := deadline(t, time.Hour), deadline(t, time.Minute)
	end := func(batch ...*call) time.Time {
		ctx, cancel := flightContext(batch)
		defer cancel()
		d, _ := ctx.Deadline()
		return d
	}
	want, _ := hour.Deadline()
	require.Equal(t, want, end(&call{ctx: minute}, &call{ctx: hour}))
	require.Equal(t, want, end(&call{ctx: hour}, &call{ctx: minute}))
	require.Zero(t, end(&call{ctx: minute}, &call{ctx: context.Background()}))
}

func deadline(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}
