package forwarder_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/forwarder"
	"github.com/millrace-go/millrace/internal/testenv"
)

// TestRacingCommitsAreSentOnceEach has nothing go wrong but the race of commits: positions are drawn in
// another order than that in which they become visible.
func TestRacingCommitsAreSentOnceEach(t *testing.T) {
	t.Parallel()
	seeds, n := 1, 60
	if testenv.Full() {
		seeds, n = 6, 2000
	}
	for _, d := range databases {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			l := newLedger(t, d)
			pub := record{t.TempDir() + "/got"}
			_, stopFirst := l.run(pub, forwarder.Config{})
			_, stopSecond := l.run(pub, forwarder.Config{})
			for _, writers := range []int{2, 3, 4, 8, 16} {
				for range seeds {
					l.put(t.Context(), newSeed(t), n, load{
						writers: writers, keys: 10, keyed: 50, free: 3, rollbacks: 20, hold: 8 * time.Millisecond})
				}
			}
			l.settled()
			require.NoError(t, stopFirst())
			require.NoError(t, stopSecond())
			require.Zero(t, l.requireReconciled(pub.ids(t)), "duplicates")
			t.Logf("%d committed", len(l.committed))
		})
	}
}

// TestContendedKeysStayInOrderWhileTheForwarderIsKilledAgainAndAgain kills one that can hardly get
// going: every 0.7 s, with a lease that ends at once.
func TestContendedKeysStayInOrderWhileTheForwarderIsKilledAgainAndAgain(t *testing.T) {
	t.Parallel()
	n, leastKills := 800, 3
	if testenv.Full() {
		n, leastKills = 52_000, 60
	}
	for _, d := range []database{postgres, mariadb} {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			l := newLedger(t, d)
			address, ids := recording.open(t)
			written := make(chan struct{})
			go func() {
				defer close(written)
				l.put(t.Context(), newSeed(t), n, load{
					writers: 24, keys: contended, keyed: 100, free: 1, rollbacks: 10, savepoints: true, hold: 6 * time.Millisecond})
			}()
			kills := 0
			for writing := true; writing || kills < leastKills; kills++ {
				cmd := l.spawn(address, 200*time.Millisecond, "")
				pace(t.Context(), 700*time.Millisecond)
				require.NoError(t, cmd.Process.Kill())
				_ = cmd.Wait()
				select {
				case <-written:
					writing = false
				default:
				}
			}
			l.spawn(address, time.Minute, "") // this one is to get through, however slow the machine is
			l.settled()
			duplicates := l.requireReconciled(ids())
			require.LessOrEqual(t, duplicates, kills*window)
			l.requireNothingParked()
			t.Logf("%d kills, %d committed, %d duplicates", kills, len(l.committed), duplicates)
		})
	}
}

// crew are forwarders in processes of their own.
type crew struct {
	*ledger
	address string
	lease   time.Duration
	members []*exec.Cmd
}

func newCrew(l *ledger, address string, lease time.Duration, n int) *crew {
	c := &crew{ledger: l, address: address, lease: lease, members: make([]*exec.Cmd, n)}
	for i := range c.members {
		c.members[i] = l.spawn(address, lease, "")
	}
	return c
}

func (c *crew) kill(i int) {
	c.Helper()
	require.NoError(c, c.members[i].Process.Kill())
	_ = c.members[i].Wait()
	c.members[i] = c.spawn(c.address, c.lease, "")
}

func (c *crew) freeze(ctx context.Context, i int, d time.Duration) {
	c.Helper()
	require.NoError(c, c.members[i].Process.Signal(syscall.SIGSTOP))
	pace(ctx, d)
	require.NoError(c, c.members[i].Process.Signal(syscall.SIGCONT))
}

// replace ends a member as a deployment does, and starts another.
func (c *crew) replace(i int) error {
	c.Helper()
	err := c.terminate(i)
	c.members[i] = c.spawn(c.address, c.lease, "")
	return err
}

// terminate ends a member gracefully, and returns its exit status. One that has not come so far as to catch
// the signal just ends.
func (c *crew) terminate(i int) error {
	c.Helper()
	require.NoError(c, c.members[i].Process.Signal(syscall.SIGTERM))
	ended := make(chan error, 1)
	go func() { ended <- c.members[i].Wait() }()
	select {
	case err := <-ended:
		if status := c.members[i].ProcessState.Sys().(syscall.WaitStatus); status.Signaled() && status.Signal() == syscall.SIGTERM {
			return nil
		}
		return err
	case <-time.After(2 * time.Minute):
		c.Fatal("the forwarder did not end")
	}
	return nil
}

func TestReplicasFrozenAndKilledAtRandomKeepTheOrderOfKeys(t *testing.T) {
	t.Parallel()
	faults := 6
	if testenv.Full() {
		faults = 120
	}
	for _, d := range []database{postgres, mariadb} {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			l := newLedger(t, d)
			address, ids := recording.open(t)
			seed := newSeed(t)
			stop := l.inBackground(seed, load{writers: 4, keys: 50, keyed: 100, free: 1, rollbacks: 10, hold: 20 * time.Millisecond})
			const lease = 400 * time.Millisecond
			c, rng := newCrew(l, address, lease, 3), rand.New(rand.NewPCG(seed, 1000))
			for i := range faults {
				before := len(ids())
				testenv.Eventually(t, 3*time.Minute, fmt.Sprintf("messages flow before fault %d", i), func() bool { return len(ids()) > before })
				pace(t.Context(), time.Duration(rng.Int64N(int64(300*time.Millisecond))))
				if who := rng.IntN(3); rng.IntN(2) == 0 {
					c.kill(who)
				} else {
					c.freeze(t.Context(), who, time.Duration(rng.Int64N(int64(3*lease))))
				}
			}
			stop()
			l.settled()
			duplicates := l.requireReconciled(ids())
			require.LessOrEqual(t, duplicates, faults*window)
			l.requireNothingParked()
			t.Logf("%d faults, %d committed, %d duplicates", faults, len(l.committed), duplicates)
		})
	}
}

func TestARollingRestartOfThreeReplicasLosesAndRepeatsNothing(t *testing.T) {
	t.Parallel()
	rounds, dbs := 3, []database{postgres}
	if testenv.Full() {
		rounds, dbs = 30, []database{postgres, mariadb}
	}
	for _, d := range dbs {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			l := newLedger(t, d)
			address, ids := recording.open(t)
			// The lease is longer than any wait here: what is not handed over in order is missed.
			c := newCrew(l, address, 5*time.Minute, 3)
			stop := l.inBackground(newSeed(t), load{writers: 4, keys: 50, keyed: 50, free: 4, rollbacks: 10, hold: 10 * time.Millisecond})
			for i := range rounds {
				before := len(ids())
				testenv.Eventually(t, 2*time.Minute, "messages flow", func() bool { return len(ids()) > before+50 })
				require.NoError(t, c.replace(i%3), "exit status")
			}
			stop()
			l.settled()
			for i := range c.members {
				require.NoError(t, c.terminate(i), "exit status")
			}
			require.Zero(t, l.count("millrace_forwarders"), "the lanes are released")
			require.Zero(t, l.requireReconciled(ids()), "duplicates")
			t.Logf("%d restarts, %d committed", rounds, len(l.committed))
		})
	}
}
