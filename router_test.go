package millrace_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/internal/died"
)

// mortal is a subscriber whose subscriptions end when told.
type mortal struct {
	mu    sync.Mutex
	ended []func(error)
}

func (m *mortal) Subscribe(ctx context.Context, _ string) (<-chan *message.Message, error) {
	out := make(chan *message.Message)
	once := sync.OnceFunc(func() { close(out) })
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ended = append(m.ended, func(err error) {
		died.Report(ctx, err)
		once()
	})
	context.AfterFunc(ctx, once)
	return out, nil
}

func (m *mortal) end(i int, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ended[i](err)
}

func (m *mortal) Close() error {
	for i := range m.ended {
		m.end(i, nil)
	}
	return nil
}

func runRouter(t *testing.T, ctx context.Context) (*message.Router, *mortal, <-chan error) {
	router, err := message.NewRouter(message.RouterConfig{CloseTimeout: time.Minute}, watermill.NopLogger{})
	require.NoError(t, err)
	sub := &mortal{}
	for _, name := range []string{"a", "b"} {
		router.AddConsumerHandler(name, "topic-"+name, sub, func(*message.Message) error { return nil })
	}
	done := make(chan error, 1)
	go func() { done <- millrace.RunRouter(ctx, router) }()
	<-router.Running()
	return router, sub, done
}

func TestRunRouterReturnsTheCauseWhenASubscriptionDies(t *testing.T) {
	t.Parallel()
	cause := errors.New("stream was deleted")
	_, sub, done := runRouter(t, t.Context())
	sub.end(0, cause)
	err := <-done
	require.ErrorIs(t, err, millrace.ErrSubscriptionEnded)
	require.ErrorIs(t, err, cause)
}

func TestRunRouterReturnsNilWhenAsked(t *testing.T) {
	t.Parallel()
	router, _, done := runRouter(t, t.Context())
	require.NoError(t, router.Close())
	require.NoError(t, <-done)

	ctx, cancel := context.WithCancel(t.Context())
	_, _, done = runRouter(t, ctx)
	cancel()
	require.NoError(t, <-done)
}

func TestRunRouterReturnsWhyItDidNotStart(t *testing.T) {
	t.Parallel()
	router, err := message.NewRouter(message.RouterConfig{}, watermill.NopLogger{})
	require.NoError(t, err)
	broken := errors.New("no plugin")
	router.AddPlugin(func(*message.Router) error { return broken })
	require.ErrorIs(t, millrace.RunRouter(t.Context(), router), broken)
}
