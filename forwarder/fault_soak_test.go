package forwarder_test

import (
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/internal/fault/proxy"
	"github.com/millrace-go/millrace/internal/testenv"
)

// soakVariable is how long the soak goes on, as in MILLRACE_SOAK=30m.
const soakVariable = "MILLRACE_SOAK"

// TestRandomFaultsTogetherLoseNothing has everything happen that the other tests do one at a time, in any
// order and at once: to a database, a broker, the way to it, and three replicas.
func TestRandomFaultsTogetherLoseNothing(t *testing.T) {
	t.Parallel()
	lasts, gap := 2*time.Second, 500*time.Millisecond
	if testenv.Full() {
		lasts, gap = 3*time.Minute, 3*time.Second
	}
	if given := os.Getenv(soakVariable); given != "" {
		var err error
		lasts, err = time.ParseDuration(given)
		require.NoError(t, err, soakVariable)
		gap = 5 * time.Second
	}
	server, direct := testenv.OwnPostgres(t), testenv.RabbitMQ(t)
	u, err := url.Parse(direct)
	require.NoError(t, err)
	way := proxy.New(t, u.Host)
	u.Host = way.Addr
	ch := admin(t, direct)
	_, err = ch.QueueDeclare("orders", true, false, false, false, nil)
	require.NoError(t, err)

	l := newLedger(t, at(postgres, server.URL))
	seed := newSeed(t)
	c, rng := newCrew(l, u.String(), time.Second, 3), rand.New(rand.NewPCG(seed, 1000))
	faults := []struct {
		name string
		do   func()
	}{
		{"kill a replica", func() { c.kill(rng.IntN(3)) }},
		{"freeze a replica", func() { c.freeze(t.Context(), rng.IntN(3), time.Duration(rng.Int64N(int64(3*time.Second)))) }},
		// Whether all could be stored in time is not asked here, where anything may be away.
		{"replace a replica", func() { _ = c.replace(rng.IntN(3)) }},
		{"kill the database", func() { server.Kill(); server.Start() }},
		{"freeze the database", func() {
			server.Pause()
			pace(t.Context(), time.Duration(rng.Int64N(int64(2*time.Second))))
			server.Resume()
		}},
		{"cut off the broker", way.Cut},
		{"silence the broker", func() {
			way.Blackhole(true)
			pace(t.Context(), time.Duration(rng.Int64N(int64(4*time.Second))))
			way.Cut()
			way.Blackhole(false)
		}},
		{"refuse connections to the broker", func() {
			way.Refuse(true)
			way.Cut()
			pace(t.Context(), time.Duration(rng.Int64N(int64(2*time.Second))))
			way.Refuse(false)
		}},
	}
	stop := l.inBackground(seed, load{
		writers: 4, keys: 50, keyed: 50, free: 3, rollbacks: 15, savepoints: true, hold: 40 * time.Millisecond, outages: true})
	count := map[string]int{}
	for end := time.Now().Add(lasts); time.Now().Before(end); {
		f := faults[rng.IntN(len(faults))]
		f.do()
		count[f.name]++
		pace(t.Context(), gap/2+time.Duration(rng.Int64N(int64(gap))))
	}
	stop()
	l.settled()
	for i := range c.members {
		_ = c.replace(i) // a graceful stop, after which nothing is in flight
	}
	duplicates := l.requireReconciled(take(t, ch, "orders", l.count("ledger")))
	total := 0
	for _, n := range count {
		total += n
	}
	require.LessOrEqual(t, duplicates, total*3*window)
	l.requireNothingParked()
	t.Logf("%v, faults %v: %d committed, %d unknown to their writers, %s", lasts, count, len(l.committed), l.unknown, fmt.Sprint(duplicates, " duplicates"))
}
