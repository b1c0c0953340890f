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

	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/outbox"
)

// faultPoints are the moments at which a forwarder may die.
var faultPoints = []string{
	"forwarder.after_read",    // messages are in memory only
	"forwarder.after_publish", // the broker has them, the forwarder has not looked at its answer
	"forwarder.after_confirm", // it has
	"forwarder.before_settle", // it is about to delete the rows
	"forwarder.after_settle",  // it has deleted them, and does not know yet
}

// killing kills a forwarder at every point, so many times each, while writers go on, and lets one run to the end.
func killing(t *testing.T, s *stage, broker far, rounds int, lease time.Duration) {
	address, ids := broker.open(t)
	kills := 0
	for round := range rounds {
		for _, point := range faultPoints {
			if round%3 != 2 {
				// Every third round meets lanes whose holders died one after the other, and is sent
				// one by one; the others are to have a full window in flight.
				s.exec(`UPDATE millrace_lanes SET crashes = 0`)
			}
			s.write(t.Context(), 1500-s.waiting(), 8)
			cmd := s.spawn(address, lease, fmt.Sprintf("%s:%d:kill", point, 1+rand.N(6)))
			ctx, cancel := context.WithCancel(t.Context())
			written := make(chan struct{})
			go func() { defer close(written); s.write(ctx, 400, 2) }()
			killed := died(t, cmd, 3*time.Minute)
			cancel()
			<-written
			require.True(t, killed, "the process ended by itself at %s", point)
			kills++
		}
	}
	require.NotZero(t, s.waiting(), "there was work to lose")
	last := s.spawn(address, time.Minute, "") // its stop is to be in order however slow the machine is
	t.Cleanup(func() {
		if t.Failed() { // say where it stands
			_ = last.Process.Signal(syscall.SIGQUIT)
			_ = last.Wait()
		}
	})
	testenv.Eventually(t, 3*time.Minute, "the outbox is empty", func() bool { return s.waiting() == 0 })
	require.NoError(t, last.Process.Signal(syscall.SIGTERM))
	require.NoError(t, last.Wait())
	require.Zero(t, s.count("millrace_forwarders"), "a graceful stop releases the lanes")

	duplicates := s.requireDelivered(ids())
	require.LessOrEqual(t, duplicates, kills*window)
	t.Logf("%d kills, %d committed, %d duplicates", kills, len(s.committed), duplicates)
}

func TestAForwarderKilledAtAnyPointLosesNothing(t *testing.T) {
	rounds := 1
	if testenv.Full() {
		rounds = 10
	}
	for _, path := range []struct {
		from   database
		to     far
		rounds int
		lease  time.Duration
	}{
		{postgres, rabbit, 10, 400 * time.Millisecond},
		{postgres, redisStream, 10, 400 * time.Millisecond},
		{mariadb, recording, rounds, 400 * time.Millisecond},
		// One writer at a time, and the race detector makes it slow: a short lease would be lost often.
		{sqlite, recording, rounds, 2 * time.Second},
	} {
		t.Run(path.from.name+" to "+path.to.name, func(t *testing.T) {
			t.Parallel()
			killing(t, newStage(t, path.from), path.to, path.rounds, path.lease)
		})
	}
}

func TestAKilledForwarderIsTakenOverWhenTheDefaultLeaseEnds(t *testing.T) {
	t.Parallel()
	s := newStage(t, postgres)
	address, ids := recording.open(t)
	s.write(t.Context(), 1000, 8)
	cmd := s.spawn(address, 8*time.Second, "forwarder.after_confirm:1:kill")
	require.True(t, died(t, cmd, time.Minute))
	var owner, end string
	require.NoError(t, s.raw.QueryRow(`SELECT id, expires_at::text FROM millrace_forwarders WHERE expires_at > clock_timestamp()`).Scan(&owner, &end))
	s.spawn(address, 8*time.Second, "")
	testenv.Eventually(t, 2*time.Minute, "the lanes have another owner", func() bool {
		var left int
		var ended bool // looked at after the lanes
		require.NoError(t, s.raw.QueryRow(`SELECT (SELECT count(*) FROM millrace_lanes WHERE owner = $1), clock_timestamp() >= $2::timestamptz`,
			owner, end).Scan(&left, &ended))
		require.True(t, left == outbox.Lanes || ended, "not before the lease has ended")
		return left == 0
	})
	testenv.Eventually(t, 2*time.Minute, "the outbox is empty", func() bool { return s.waiting() == 0 })
	require.LessOrEqual(t, s.requireDelivered(ids()), window)
}

func TestAForwarderFrozenPastItsLeaseIsFenced(t *testing.T) {
	t.Parallel()
	rounds := 3
	if testenv.Full() {
		rounds = 6
	}
	for _, d := range []database{postgres, mariadb} {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			s := newStage(t, d)
			address, ids := recording.open(t)
			ctx, cancel := context.WithCancel(t.Context())
			written := make(chan struct{})
			go func() { defer close(written); s.write(ctx, 1_000_000, 4) }()
			const lease = time.Second
			first, second := s.spawn(address, lease, ""), s.spawn(address, lease, "")
			t.Cleanup(func() {
				if t.Failed() { // say where they stand
					for _, cmd := range []*exec.Cmd{first, second} {
						_ = cmd.Process.Signal(syscall.SIGCONT)
						_ = cmd.Process.Signal(syscall.SIGQUIT)
						_ = cmd.Wait()
					}
				}
			})
			for range rounds {
				for _, cmd := range []interface{ Signal(sig syscall.Signal) }{signaller{first.Process.Pid}, signaller{second.Process.Pid}} {
					taken := 0
					testenv.Eventually(t, 2*time.Minute, "it is frozen while both hold their share", func() bool {
						if s.smallestShare() < 30 {
							return false
						}
						before := len(ids())
						testenv.Eventually(t, 2*time.Minute, "messages flow", func() bool { return len(ids()) > before+100 })
						cmd.Signal(syscall.SIGSTOP)
						taken = s.epochs()
						if s.smallestShare() >= 30 { // what it holds is still to be taken over
							return true
						}
						cmd.Signal(syscall.SIGCONT) // it was slow, and has lost its lanes by itself
						return false
					})
					testenv.Eventually(t, 2*time.Minute, "the other one takes over", func() bool { return s.epochs() > taken+20 })
					cmd.Signal(syscall.SIGCONT)
				}
			}
			cancel()
			<-written
			testenv.Eventually(t, 2*time.Minute, "the outbox is empty", func() bool { return s.waiting() == 0 })
			require.LessOrEqual(t, s.requireDelivered(ids()), 2*rounds*window)
		})
	}
}

type signaller struct{ pid int }

func (s signaller) Signal(sig syscall.Signal) { _ = syscall.Kill(s.pid, sig) }

// smallestShare is the number of lanes of the replica that holds the fewest, 0 if there is only one.
func (s *stage) smallestShare() (n int) {
	s.Helper()
	require.NoError(s, s.raw.QueryRow(`SELECT CASE WHEN count(*) > 1 THEN min(lanes) ELSE 0 END FROM
		(SELECT count(*) AS lanes FROM millrace_lanes WHERE owner IN (SELECT id FROM millrace_forwarders) GROUP BY owner) shares`).Scan(&n))
	return n
}

// epochs counts how often lanes changed hands.
func (s *stage) epochs() (n int) {
	s.Helper()
	require.NoError(s, s.raw.QueryRow(`SELECT sum(epoch) FROM millrace_lanes`).Scan(&n))
	return n
}

func TestTerminatedUnderLoadAForwarderDuplicatesNothing(t *testing.T) {
	t.Parallel()
	rounds := 6
	if testenv.Full() {
		rounds = 30
	}
	s := newStage(t, postgres)
	address, ids := recording.open(t)
	ctx, cancel := context.WithCancel(t.Context())
	written := make(chan struct{})
	go func() { defer close(written); s.write(ctx, 1_000_000, 4) }()
	const lease = 3 * time.Minute // so long would the successor wait for lanes that were not released
	for range rounds {
		before := len(ids())
		cmd := s.spawn(address, lease, "")
		testenv.Eventually(t, 2*time.Minute, "messages flow at once", func() bool { return len(ids()) > before+100 })
		require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
		require.NoError(t, cmd.Wait())
	}
	cancel()
	<-written
	s.spawn(address, lease, "")
	testenv.Eventually(t, 2*time.Minute, "the outbox is empty", func() bool { return s.waiting() == 0 })
	require.Zero(t, s.requireDelivered(ids()))
}
