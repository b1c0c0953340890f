package forwarder

import (
	"context"
	"database/sql"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/outbox"
	"github.com/millrace-go/millrace/outbox/outboxtest"
)

// handSubscriber is a subscription that a test ends by hand.
type handSubscriber struct {
	out  chan *message.Message
	once sync.Once
}

func (h *handSubscriber) Subscribe(ctx context.Context, _ string) (<-chan *message.Message, error) {
	context.AfterFunc(ctx, func() { _ = h.Close() })
	return h.out, nil
}

func (h *handSubscriber) Close() error {
	h.once.Do(func() { close(h.out) })
	return nil
}

// runRouter runs a router with the forwarder as plugin and n other handlers.
func runRouter(t *testing.T, ctx context.Context, store *outboxtest.Memory, pub message.Publisher, n int) (f *Forwarder, others []*handSubscriber, router *message.Router, done chan error) {
	t.Helper()
	f, err := New(memorySource{store}, pub, Config{})
	require.NoError(t, err)
	router, err = message.NewRouter(message.RouterConfig{}, watermill.NopLogger{})
	require.NoError(t, err)
	router.AddPlugin(f.Plugin)
	for i := range n {
		sub := &handSubscriber{out: make(chan *message.Message)}
		others = append(others, sub)
		router.AddConsumerHandler(string(rune('a'+i)), "t", sub, func(*message.Message) error { return nil })
	}
	done = make(chan error, 1)
	go func() { done <- router.Run(ctx) }()
	return f, others, router, done
}

func TestRouterRunReturnsAfterTheForwarderHasStopped(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*message.Router, context.CancelFunc){
		"the router is closed": func(r *message.Router, _ context.CancelFunc) { go r.Close() },
		"its context ends":     func(_ *message.Router, cancel context.CancelFunc) { cancel() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // in real time: the router waits with locks held, which stops the clock of a bubble
			store := outboxtest.NewMemory()
			fill(store, 200, 50)
			pub := &broker{latency: 200 * time.Millisecond}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			f, _, router, done := runRouter(t, ctx, store, pub, 2)
			testenv.Eventually(t, 10*time.Second, "messages in flight", func() bool { return f.Stats().Flying > 0 })
			end(router, cancel)
			require.NoError(t, <-done)
			require.False(t, f.Stats().Running)
			require.Empty(t, store.Held(), "lanes are released")
			require.Len(t, store.Waiting(), 200-len(pub.ids()))
			require.NotEmpty(t, pub.ids(), "what was in flight was waited for")
		})
	}
}

func TestRouterRunReturnsWhenEveryRealSubscriptionDied(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := outboxtest.NewMemory()
		f, others, _, done := runRouter(t, t.Context(), store, &broker{}, 3)
		time.Sleep(time.Second)
		for i, sub := range others {
			require.True(t, f.Stats().Running, "%d of 3 have ended", i)
			require.NoError(t, sub.Close())
			time.Sleep(time.Second)
		}
		require.NoError(t, <-done)
		require.False(t, f.Stats().Running)
	})
}

func TestARouterWithNothingButTheForwarderRunsUntilItIsClosed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := outboxtest.NewMemory()
		fill(store, 10, 2)
		pub := &broker{}
		_, _, router, done := runRouter(t, t.Context(), store, pub, 0)
		time.Sleep(time.Minute)
		require.Len(t, pub.ids(), 10)
		require.NoError(t, router.Close())
		require.NoError(t, <-done)
	})
}

type setupProblem struct{}

func (setupProblem) Error() string { return "exchange name missing: set it" }
func (setupProblem) Setup() bool   { return true }

type misconfigured struct{ broker }

func (*misconfigured) Check(context.Context) error { return setupProblem{} }

func TestAMisconfiguredPublisherEndsRunWithTheRemedy(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := outboxtest.NewMemory()
		f, err := New(memorySource{store}, &misconfigured{}, Config{})
		require.NoError(t, err)
		require.ErrorContains(t, f.Run(t.Context()), "set it")

		// The router's Run fails with what Subscribe answers.
		_, err = (&plugin{f: f, changed: newSignal()}).Subscribe(t.Context(), "")
		require.ErrorContains(t, err, "set it")
	})
}

func TestAllThatIsSetUpWronglyIsSaidAtOnce(t *testing.T) {
	t.Parallel()
	raw, err := sql.Open("sqlite", "file:"+testenv.SQLite(t)+"?_pragma=journal_mode(wal)")
	require.NoError(t, err)
	t.Cleanup(func() { _ = raw.Close() })
	box, err := outbox.New(millrace.SQL(raw), outbox.Config{})
	require.NoError(t, err)
	f, err := New(box, &misconfigured{}, Config{})
	require.NoError(t, err)
	err = f.Run(t.Context())
	require.ErrorIs(t, err, setupProblem{})
	require.ErrorContains(t, err, "call millrace.Migrate")
	require.True(t, outbox.IsSetup(err))
}

// turning is set up well when it is first asked, and wrongly from then on.
type turning struct {
	broker
	asked atomic.Bool
}

func (p *turning) Check(context.Context) error {
	if p.asked.Swap(true) {
		return setupProblem{}
	}
	return nil
}

func TestRunRouterReturnsWhyTheForwarderEnded(t *testing.T) {
	t.Parallel()
	f, err := New(memorySource{outboxtest.NewMemory()}, &turning{}, Config{})
	require.NoError(t, err)
	router, err := message.NewRouter(message.RouterConfig{}, watermill.NopLogger{})
	require.NoError(t, err)
	router.AddPlugin(f.Plugin)
	require.ErrorIs(t, millrace.RunRouter(t.Context(), router), setupProblem{})
}

func TestAForwarderRunsOnceAtATime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f, _, stop := start(t, outboxtest.NewMemory(), &broker{}, Config{})
		time.Sleep(time.Second)
		require.True(t, errors.Is(f.Run(t.Context()), ErrRunning))
		require.NoError(t, stop())
	})
}
