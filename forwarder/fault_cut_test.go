package forwarder_test

import (
	"context"
	"fmt"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/broker/redisstreams"
	"github.com/millrace-go/millrace/forwarder"
	"github.com/millrace-go/millrace/internal/fault/proxy"
	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/outbox"
)

// replica is a forwarder with a way of its own to the broker.
type replica struct {
	*forwarder.Forwarder
	stop func() error

	mu         sync.Mutex
	handedOver int // lanes
}

// replicaTo runs a replica whose broker is at url.
func (l *ledger) replicaTo(t *testing.T, url string, lease time.Duration) *replica {
	t.Helper()
	pub, err := redisstreams.NewPublisher(redisstreams.Config{URL: url, Timeout: time.Second})
	require.NoError(t, err)
	t.Cleanup(func() { _ = pub.Close() })
	r, cfg := &replica{}, processConfig
	cfg.Lease = lease
	cfg.Observers = []forwarder.Observer{{OnLanes: func(_ context.Context, c forwarder.LaneChange) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.handedOver += c.HandedOver
	}}}
	r.Forwarder, r.stop = l.run(pub, cfg)
	return r
}

func (r *replica) gave() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.handedOver
}

// everywhere commits n messages without a key for each lane.
func (l *ledger) everywhere(prefix string, n int) {
	l.Helper()
	l.rows(n*outbox.Lanes, l.concat(`'free-`+prefix+`-'`, `n`), `''`, fmt.Sprintf(`n %% %d`, outbox.Lanes), "orders", "NULL")
	l.exec(`INSERT INTO ledger SELECT id FROM millrace_outbox WHERE id LIKE 'free-` + prefix + `-%'`)
}

// TestAReplicaThatIsCutFromTheBrokerHandsItsLanesToOneThatIsNot cuts one of two replicas from the broker while both
// reach the database. What is in its lanes stands still until it has given them away: 30 s with the lease that is the default.
func TestAReplicaThatIsCutFromTheBrokerHandsItsLanesToOneThatIsNot(t *testing.T) {
	t.Parallel()
	lease, slow := 2*time.Second, 5*time.Second // slow is how much longer the work may take on a machine that is busy
	if testenv.Full() {
		lease = 8 * time.Second
	}
	patience := lease * 15 / 4
	direct := testenv.OwnRedis(t).URL
	u, err := url.Parse(direct)
	require.NoError(t, err)
	p := proxy.New(t, u.Host)
	u.Host = p.Addr
	l := newLedger(t, postgres)
	a, b := l.replicaTo(t, u.String(), lease), l.replicaTo(t, direct, lease)
	shared := func() bool { return a.Stats().Lanes == outbox.Lanes/2 && b.Stats().Lanes == outbox.Lanes/2 }
	testenv.Eventually(t, time.Minute, "the lanes are shared", shared)
	work := load{writers: 4, keys: contended, keyed: 50, free: 3, rollbacks: 10}
	// both publishes in all lanes, so that each replica has something to send.
	both := func(prefix string) {
		before := [2]int64{a.Stats().Published, b.Stats().Published}
		l.everywhere(prefix, 2)
		l.put(t.Context(), newSeed(t), 300, work)
		l.settled()
		require.Greater(t, a.Stats().Published, before[0])
		require.Greater(t, b.Stats().Published, before[1])
	}
	both("before")

	gave, published := a.gave(), a.Stats().Published
	p.Refuse(true)
	p.Cut()
	cut := time.Now()
	l.everywhere("cut", 2)
	l.put(t.Context(), newSeed(t), 300, work)
	l.settled()
	took := time.Since(cut)
	require.Less(t, took, patience+lease+slow)
	require.Equal(t, published, a.Stats().Published, "the other one has sent them all")
	require.Zero(t, a.Stats().Lanes)
	require.Equal(t, outbox.Lanes, b.Stats().Lanes)
	require.Equal(t, outbox.Lanes/2, a.gave()-gave, "lanes that were handed over, and not taken away")
	require.Error(t, a.Health(t.Context()))

	p.Refuse(false)
	back := time.Now()
	testenv.Eventually(t, time.Minute, "the lanes are shared again", shared)
	t.Logf("lease %v: all sent %v after the cut, lanes shared again %v after its end", lease, took, time.Since(back))
	both("after")
	require.NoError(t, a.stop())
	require.NoError(t, b.stop())
	require.Zero(t, l.requireReconciled(streamed(t, direct, "orders")), "duplicates")
	require.Zero(t, a.Stats().Refused, "what did not reach the broker is no attempt")
	l.requireNothingParked()
}
