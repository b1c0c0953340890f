package forwarder

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/outbox"
	"github.com/millrace-go/millrace/outbox/outboxtest"
)

// readNoter is the fake, with a note of the lanes of each read.
type readNoter struct {
	*outboxtest.Memory
	mu    sync.Mutex
	lanes [][]int
}

func (r *readNoter) Store() outbox.Store             { return r }
func (*readNoter) Subscribe() (*outbox.Wake, func()) { return nil, func() {} }

func (r *readNoter) Read(ctx context.Context, q outbox.Read) ([]outbox.Row, error) {
	r.mu.Lock()
	r.lanes = append(r.lanes, q.Lanes)
	r.mu.Unlock()
	return r.Memory.Read(ctx, q)
}

func (r *readNoter) take() [][]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	lanes := r.lanes
	r.lanes = nil
	return lanes
}

// startNoted runs a forwarder that finds nothing by polling.
func startNoted(t *testing.T, store *readNoter, pub *broker, cfg Config) (wake *testWake) {
	t.Helper()
	cfg.PollInterval, cfg.MaxPollInterval, cfg.RetryMax = time.Hour, time.Hour, 2*time.Hour
	f, err := New(store, pub, cfg)
	require.NoError(t, err)
	wake = newTestWake()
	f.subscribe = func() (waker, func()) { return wake, func() {} }
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	synctest.Wait()
	return wake
}

func TestACommitThatIsSignalledIsLookedForInItsLanesAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store, pub := &readNoter{Memory: outboxtest.NewMemory()}, &broker{}
		wake := startNoted(t, store, pub, Config{})
		insert := func(n int) {
			store.Insert(outboxtest.Entry{ID: fmt.Sprintf("k-%06d", n), Topic: "t", Key: "k"})
			wake.ring(1 << outbox.Lane("k"))
			until(t, time.Second, "sent and read up", func() bool { return len(pub.ids()) == n+1 && len(store.Waiting()) == 0 })
			time.Sleep(time.Second)
		}
		insert(0) // the first of its topic
		store.take()
		for n := 1; n < 10; n++ {
			insert(n)
		}
		reads := store.take()
		require.NotEmpty(t, reads)
		for _, lanes := range reads {
			require.Equal(t, []int{outbox.Lane("k")}, lanes)
		}
	})
}

// What a limit kept out, in whatever lane, is read although only one lane is signalled meanwhile.
func TestASignalOfOneLaneLeavesNoOtherOneUnread(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store, pub := &readNoter{Memory: outboxtest.NewMemory()}, &broker{latency: 3 * time.Millisecond}
		wake := startNoted(t, store, pub, Config{BatchRows: 10, ReadAheadRows: 20})
		fill(store.Memory, 500, 100)
		wake.ring(1 << outbox.Lane("k1"))
		until(t, time.Minute, "all sent", func() bool {
			wake.ring(1 << outbox.Lane("k1"))
			return len(store.Waiting()) == 0
		})
		_, duplicates := requireOrder(t, pub.ids())
		require.Zero(t, duplicates)
	})
}
