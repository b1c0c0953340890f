package gate_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/millrace-go/millrace/internal/gate"
)

// TestMain doubles as the other process: it takes the gate of the file named in the environment and
// says so, over and over.
func TestMain(m *testing.M) {
	if path := os.Getenv("GATE_TEST_FILE"); path != "" {
		other(path)
		return
	}
	goleak.VerifyTestMain(m)
}

func other(path string) {
	g := gate.For(path)
	for {
		release, err := g.Acquire(context.Background())
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("in")
		hold := time.NewTimer(2 * time.Millisecond)
		<-hold.C
		release()
	}
}

func file(t *testing.T) string {
	path := filepath.Join(t.TempDir(), "x.db")
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	return path
}

func TestOneAtATimePasses(t *testing.T) {
	for _, path := range []string{"", file(t)} {
		g := gate.For(path)
		var in, most atomic.Int32
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() {
				for range 50 {
					release, err := g.Acquire(t.Context())
					if err != nil {
						t.Error(err)
						return
					}
					if n := in.Add(1); n > most.Load() {
						most.Store(n)
					}
					in.Add(-1)
					release()
				}
			})
		}
		wg.Wait()
		require.EqualValues(t, 1, most.Load())
	}
}

func TestWaitersPassInTheOrderTheyCame(t *testing.T) {
	g := gate.For(file(t))
	first, err := g.Acquire(t.Context())
	require.NoError(t, err)
	var order []int
	var wg sync.WaitGroup
	for i := range 20 {
		queued := make(chan struct{})
		wg.Go(func() {
			close(queued)
			release, err := g.Acquire(t.Context())
			if err == nil {
				order = append(order, i)
				release()
			}
		})
		<-queued
		waitFor(t, func() bool { return gate.Waiting(g) == i+1 })
	}
	first()
	wg.Wait()
	for i, got := range order {
		require.Equal(t, i, got)
	}
	require.Len(t, order, 20)
}

func TestAWaiterLeavesWhenItsContextEnds(t *testing.T) {
	g := gate.For(file(t))
	release, err := g.Acquire(t.Context())
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { _, err := g.Acquire(ctx); done <- err }()
	waitFor(t, func() bool { return gate.Waiting(g) == 1 })
	cancel()
	require.ErrorIs(t, <-done, context.Canceled)
	release()
	release() // once is enough, twice does no harm
	release, err = g.Acquire(t.Context())
	require.NoError(t, err)
	release()
}

func TestSymlinksAndRelativePathsMeetAtOneGate(t *testing.T) {
	path := file(t)
	link := filepath.Join(t.TempDir(), "link.db")
	require.NoError(t, os.Symlink(path, link))
	require.Same(t, gate.For(path), gate.For(link))
}

func TestAGateThatCannotBeLockedSaysSo(t *testing.T) {
	g := gate.For(filepath.Join(t.TempDir(), "no", "such", "folder.db"))
	for range 2 {
		_, err := g.Acquire(t.Context())
		require.ErrorContains(t, err, "gate: lock beside the database file")
	}
}

// A second process that takes the gate again at once must not keep us out, nor we it.
func TestProcessesTakeTurns(t *testing.T) {
	path := file(t)
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), "GATE_TEST_FILE="+path)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	var theirs atomic.Int32
	lines := bufio.NewScanner(out)
	require.True(t, lines.Scan())
	go func() {
		for lines.Scan() {
			theirs.Add(1)
		}
	}()
	g := gate.For(path)
	var ours atomic.Int32
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	for range 4 {
		wg.Go(func() {
			for ctx.Err() == nil {
				if release, err := g.Acquire(ctx); err == nil {
					ours.Add(1)
					hold := time.NewTimer(2 * time.Millisecond)
					<-hold.C
					release()
				}
			}
		})
	}
	// While one of them stands still the other has the gate for itself: what counts is a stretch in which both run.
	var a, b, fromA, fromB int32
	waitFor(t, func() bool {
		a, b = ours.Load()-fromA, theirs.Load()-fromB
		if a+b < 150 {
			return false
		}
		fair := a < 3*b && b < 3*a
		if !fair {
			t.Logf("ours %d, theirs %d", a, b)
			fromA, fromB = fromA+a, fromB+b
		}
		return fair
	})
	cancel()
	wg.Wait()
}

func TestGivingUpWhileTheOtherProcessHoldsTheGateFreesIt(t *testing.T) {
	path := file(t)
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), "GATE_TEST_FILE="+path)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	lines := bufio.NewScanner(out)
	require.True(t, lines.Scan())
	g := gate.For(path)
	for range 100 {
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Microsecond)
		if release, err := g.Acquire(ctx); err == nil {
			release()
		}
		cancel()
	}
	for range 5 {
		require.True(t, lines.Scan(), "the other process still gets in")
	}
	release, err := g.Acquire(t.Context())
	require.NoError(t, err)
	release()
	waitFor(t, func() bool { return gate.Waiting(g) == 0 })
}

func waitFor(t *testing.T, cond func() bool) {
	t.Helper()
	deadline := time.After(time.Minute)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("condition not met in a minute")
		}
	}
}
