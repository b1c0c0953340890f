package forwarder_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/forwarder"
	"github.com/millrace-go/millrace/internal/testenv"
)

// run starts a forwarder on a stage's outbox; stop ends it. Its lease, unless the test has one of its own, is
// long: a machine that is slow for a while costs it neither lanes, and with them duplicates, nor an orderly stop.
func (s *stage) run(pub message.Publisher, cfg forwarder.Config) (f *forwarder.Forwarder, stop func() error) {
	s.Helper()
	if cfg.Lease == 0 {
		cfg.Lease = 2 * time.Minute
	}
	f, err := forwarder.New(s.box, pub, cfg)
	require.NoError(s, err)
	ctx, cancel := context.WithCancel(s.Context())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	stop = sync.OnceValue(func() error { cancel(); return <-done })
	s.Cleanup(func() { _ = stop() })
	return f, stop
}

func onEach(t *testing.T, dbs []database, check func(t *testing.T, s *stage)) {
	for _, d := range dbs {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			check(t, newStage(t, d))
		})
	}
}

func TestEachCommittedMessageIsPublishedOnceAndInOrderWithoutFaults(t *testing.T) {
	t.Parallel()
	n := 1500
	if testenv.Full() {
		n = 10_000
	}
	onEach(t, databases, func(t *testing.T, s *stage) {
		pub := record{filepath.Join(t.TempDir(), "got")}
		n := n
		if s.driver == "sqlite" && !testenv.Full() {
			n /= 3 // each commit waits for all others
		}
		s.write(t.Context(), n/3, 8)
		_, stop := s.run(pub, forwarder.Config{})
		s.write(t.Context(), 2*n/3, 8)
		testenv.Eventually(t, 2*time.Minute, "the outbox is empty", func() bool { return s.waiting() == 0 })
		require.NoError(t, stop())
		require.Zero(t, s.requireDelivered(pub.ids(t)), "duplicates")
		require.Zero(t, s.count("millrace_forwarders"), "the lanes are released")
	})
}

func TestReplicasShareALiveOutboxWithoutLossReorderOrDuplicate(t *testing.T) {
	t.Parallel()
	onEach(t, []database{postgres, mariadb}, func(t *testing.T, s *stage) {
		pub := record{filepath.Join(t.TempDir(), "got")}
		ctx, cancel := context.WithCancel(t.Context())
		written := make(chan struct{})
		go func() { defer close(written); s.write(ctx, 1_000_000, 6) }()
		cfg := forwarder.Config{BatchRows: 50}
		var stops []func() error
		for i := range 5 {
			f, stop := s.run(pub, cfg)
			stops = append(stops, stop)
			testenv.Eventually(t, time.Minute, "the newcomer has its share", func() bool { return f.Stats().Lanes >= 64/(len(stops)+1)-1 })
			if i >= 2 {
				require.NoError(t, stops[0]())
				stops = stops[1:]
			}
		}
		cancel()
		<-written
		testenv.Eventually(t, 2*time.Minute, "the outbox is empty", func() bool { return s.waiting() == 0 })
		for _, stop := range stops {
			require.NoError(t, stop())
		}
		require.Zero(t, s.requireDelivered(pub.ids(t)), "duplicates")
	})
}

// picky refuses one message and records the others.
type picky struct {
	record
	bad   string
	mu    sync.Mutex
	tries int
}

type tooLarge struct{}

func (tooLarge) Error() string  { return "frame too large" }
func (tooLarge) Refused() bool  { return true }
func (tooLarge) Reason() string { return "too_large" }

func (p *picky) PublishBatch(ctx context.Context, topics []string, msgs []*message.Message) []error {
	errs := make([]error, len(msgs))
	for i, msg := range msgs {
		if msg.UUID == p.bad {
			p.mu.Lock()
			p.tries++
			p.mu.Unlock()
			errs[i] = tooLarge{}
		} else {
			errs[i] = errors.Join(p.record.PublishBatch(ctx, topics[i:i+1], msgs[i:i+1])...)
		}
	}
	return errs
}

func TestOneBadMessageIsParkedAfterExactlyMaxAttemptsAndTheOthersGoOut(t *testing.T) {
	t.Parallel()
	onEach(t, databases, func(t *testing.T, s *stage) {
		s.write(t.Context(), 200, 4)
		bad := ""
		require.NoError(t, s.raw.QueryRow(`SELECT id FROM millrace_outbox WHERE order_key LIKE 'k%' ORDER BY pos LIMIT 1`).Scan(&bad))
		pub := &picky{record: record{filepath.Join(t.TempDir(), "got")}, bad: bad}
		cfg := forwarder.Config{MaxAttempts: 4, RetryBase: 50 * time.Millisecond, RetryMax: 100 * time.Millisecond}
		var stops []func() error
		for range 3 {
			_, stop := s.run(pub, cfg)
			stops = append(stops, stop)
		}
		testenv.Eventually(t, 2*time.Minute, "the outbox is empty", func() bool { return s.waiting() == 0 })
		for _, stop := range stops {
			require.NoError(t, stop())
		}
		require.Equal(t, 4, pub.tries)
		var id, reason string
		require.NoError(t, s.raw.QueryRow(`SELECT id, reason FROM millrace_dead`).Scan(&id, &reason))
		require.Equal(t, []string{bad, "too_large"}, []string{id, reason})
		delete(s.committed, bad)
		s.requireDelivered(pub.ids(t))
	})
}

func TestACommitIsSignalledToTheForwarderOfItsProcess(t *testing.T) {
	t.Parallel()
	onEach(t, databases, func(t *testing.T, s *stage) {
		pub := record{filepath.Join(t.TempDir(), "got")}
		f, _ := s.run(pub, forwarder.Config{PollInterval: time.Hour, MaxPollInterval: time.Hour})
		testenv.Eventually(t, time.Minute, "all lanes held", func() bool { return f.Stats().Lanes == 64 })
		for i := range 20 {
			s.transaction(t.Context(), 1, false)
			testenv.Eventually(t, time.Minute, fmt.Sprintf("message %d is sent without a poll", i), func() bool { return len(pub.ids(t)) >= len(s.committed) })
		}
	})
}
