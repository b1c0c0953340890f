package middleware_test

import (
	"context"
	"errors"
	"maps"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/dedup"
	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/middleware"
)

func TestMain(m *testing.M) {
	testenv.Main(m, testenv.Role("consumer that dies", dyingConsumer), testenv.Role("inbox consumer", inboxConsumer),
		testenv.Role("zombie", zombie), testenv.Role("storm consumer", stormConsumer))
}

var errHandler = errors.New("the handler failed")

// must unwraps a constructor.
func must(t testing.TB) func(message.HandlerMiddleware, error) message.HandlerMiddleware {
	t.Helper()
	return func(m message.HandlerMiddleware, err error) message.HandlerMiddleware {
		t.Helper()
		require.NoError(t, err)
		return m
	}
}

// chain wraps h, first middleware outermost.
func chain(h message.HandlerFunc, ms ...message.HandlerMiddleware) message.HandlerFunc {
	for i := len(ms) - 1; i >= 0; i-- {
		h = ms[i](h)
	}
	return h
}

// delivery is a new copy of a message, as a broker would hand it out.
func delivery(ctx context.Context, id, payload string) *message.Message {
	return message.NewMessageWithContext(ctx, id, []byte(payload))
}

// flaky is a store whose methods fail on demand.
type flaky struct {
	mu    sync.Mutex
	store dedup.Store
	down  map[string]bool
	calls map[string]int
}

var errDown = errors.New("connection refused")

func newFlaky(down ...string) *flaky {
	f := &flaky{store: new(dedup.Memory), down: map[string]bool{}, calls: map[string]int{}}
	for _, d := range down {
		f.down[d] = true
	}
	return f
}

func (f *flaky) set(method string, down bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.down[method] = down
}

func (f *flaky) count(method string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[method]
}

// forget has it forget everything.
func (f *flaky) forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.store = new(dedup.Memory)
}

func (f *flaky) open(method string) (dedup.Store, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls[method]++
	if f.down[method] {
		return nil, errDown
	}
	return f.store, nil
}

func (f *flaky) Check(context.Context) error { return nil }

func (f *flaky) Claim(ctx context.Context, k dedup.Key, r dedup.Request) (dedup.Answer, error) {
	store, err := f.open("claim")
	if err != nil {
		return dedup.Answer{}, err
	}
	return store.Claim(ctx, k, r)
}

func (f *flaky) Renew(ctx context.Context, k dedup.Key, owner string, lease time.Duration) (bool, error) {
	store, err := f.open("renew")
	if err != nil {
		return false, err
	}
	return store.Renew(ctx, k, owner, lease)
}

func (f *flaky) Done(ctx context.Context, k dedup.Key, owner string, result []byte, ttl time.Duration) (dedup.Mark, error) {
	store, err := f.open("done")
	if err != nil {
		return 0, err
	}
	return store.Done(ctx, k, owner, result, ttl)
}

func (f *flaky) Release(ctx context.Context, k dedup.Key, owner string, fresh bool) error {
	store, err := f.open("release")
	if err != nil {
		return err
	}
	return store.Release(ctx, k, owner, fresh)
}

// events counts what Idempotent tells.
type events struct {
	mu  sync.Mutex
	got map[middleware.Event]int
}

func (e *events) add(ev middleware.Event, _ *message.Message) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.got == nil {
		e.got = map[middleware.Event]int{}
	}
	e.got[ev]++
}

func (e *events) all() map[middleware.Event]int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return maps.Clone(e.got)
}

// memoryPublisher keeps what is published.
type memoryPublisher struct {
	mu   sync.Mutex
	down bool
	got  map[string][]*message.Message
	ctxs []error // of the contexts under which messages were published
}

func (p *memoryPublisher) Publish(topic string, msgs ...*message.Message) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.down {
		return errDown
	}
	if p.got == nil {
		p.got = map[string][]*message.Message{}
	}
	for _, m := range msgs {
		p.ctxs = append(p.ctxs, m.Context().Err())
	}
	p.got[topic] = append(p.got[topic], msgs...)
	return nil
}

func (p *memoryPublisher) Close() error { return nil }

func (p *memoryPublisher) on(topic string) []*message.Message {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.got[topic]
}

func newRouter(t testing.TB) *message.Router {
	t.Helper()
	r, err := message.NewRouter(message.RouterConfig{CloseTimeout: 10 * time.Second}, watermill.NopLogger{})
	require.NoError(t, err)
	return r
}

// runRouter runs it until the test ends.
func runRouter(t testing.TB, r *message.Router) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	select {
	case <-r.Running():
	case err := <-ended:
		t.Fatalf("router: %v", err)
	}
	t.Cleanup(func() { cancel(); require.NoError(t, <-ended) })
}
