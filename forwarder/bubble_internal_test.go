package forwarder

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/internal/backoff"
	"github.com/millrace-go/millrace/internal/meta"
	"github.com/millrace-go/millrace/outbox"
	"github.com/millrace-go/millrace/outbox/outboxtest"
)

// memorySource is a Source over the fake.
type memorySource struct{ *outboxtest.Memory }

func (m memorySource) Store() outbox.Store             { return m.Memory }
func (memorySource) Subscribe() (*outbox.Wake, func()) { return nil, func() {} }

// testWake is a wake-up that tests ring.
type testWake struct {
	c     chan struct{}
	mu    sync.Mutex
	lanes uint64
}

func newTestWake() *testWake { return &testWake{c: make(chan struct{}, 1)} }

func (w *testWake) C() <-chan struct{} { return w.c }

func (w *testWake) Take() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	lanes := w.lanes
	w.lanes = 0
	return lanes
}

func (w *testWake) ring(lanes uint64) {
	w.mu.Lock()
	w.lanes |= lanes
	w.mu.Unlock()
	select {
	case w.c <- struct{}{}:
	default:
	}
}

// sent is one publish that a broker saw.
type sent struct {
	id, topic, attempt, epoch string
	at                        time.Time
}

// broker is a BatchPublisher that remembers what it got.
type broker struct {
	mu      sync.Mutex
	got     []sent
	tried   []sent
	latency time.Duration
	answer  func(msg *message.Message) error // nil error = stored
	batches []int
	out     int
	mostOut int
	ordered bool
}

type refusedError struct{ reason string }

func (e refusedError) Error() string  { return "refused: " + e.reason }
func (e refusedError) Refused() bool  { return true }
func (e refusedError) Reason() string { return e.reason }

var errDown = errors.New("connection refused")

func (b *broker) Publish(topic string, msgs ...*message.Message) error { panic("not used") }
func (b *broker) Close() error                                         { return nil }
func (b *broker) KeepsKeyOrder() bool                                  { return b.ordered }

func (b *broker) PublishBatch(ctx context.Context, topics []string, msgs []*message.Message) []error {
	b.mu.Lock()
	b.out++
	b.mostOut = max(b.mostOut, b.out)
	b.batches = append(b.batches, len(msgs))
	latency, answer := b.latency, b.answer
	b.mu.Unlock()
	if latency > 0 {
		backoff.Sleep(ctx, latency)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.out--
	errs := make([]error, len(msgs))
	failedKey := map[string]bool{}
	for i, msg := range msgs {
		if ctx.Err() != nil {
			errs[i] = ctx.Err()
			continue
		}
		key, _, _ := strings.Cut(msg.UUID, "-")
		if b.ordered && failedKey[key] {
			errs[i] = errors.New("behind a message that failed")
			continue
		}
		place := strings.Split(msg.Metadata[meta.Place], ".")
		s := sent{msg.UUID, topics[i], place[3], place[1], time.Now()}
		b.tried = append(b.tried, s)
		if answer != nil {
			errs[i] = answer(msg)
		}
		failedKey[key] = errs[i] != nil
		if errs[i] == nil {
			b.got = append(b.got, s)
		}
	}
	return errs
}

func (b *broker) ids() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	ids := make([]string, len(b.got))
	for i, s := range b.got {
		ids[i] = s.id
	}
	return ids
}

func (b *broker) tries(id string) (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range b.tried {
		if s.id == id {
			n++
		}
	}
	return n
}

func (b *broker) set(answer func(msg *message.Message) error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.answer = answer
}

// start runs a forwarder in the bubble; stop ends it and returns Run's error.
func start(t *testing.T, store *outboxtest.Memory, pub message.Publisher, cfg Config) (f *Forwarder, wake *testWake, stop func() error) {
	t.Helper()
	f, err := New(memorySource{store}, pub, cfg)
	require.NoError(t, err)
	wake = newTestWake()
	f.subscribe = func() (waker, func()) { return wake, func() {} }
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	var once sync.Once
	var result error
	stop = func() error {
		once.Do(func() { cancel(); result = <-done })
		return result
	}
	t.Cleanup(func() { _ = stop() })
	return f, wake, stop
}

// until waits in bubble time.
func until(t *testing.T, d time.Duration, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(d); ; time.Sleep(max(time.Millisecond, d/10_000)) {
		synctest.Wait()
		if cond() {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("after %v: not %s", d, what)
		}
	}
}

// fill inserts count messages over so many keys; ids are key-number.
func fill(store *outboxtest.Memory, count, keys int) {
	for i := range count {
		key := fmt.Sprintf("k%d", i%keys)
		store.Insert(outboxtest.Entry{ID: fmt.Sprintf("%s-%06d", key, i), Topic: "t", Key: key, Body: []byte("x")})
	}
}

// requireOrder checks that the first deliveries of each key (the id up to the dash) are in order, and
// returns how many ids came and how many came twice.
func requireOrder(t *testing.T, ids []string) (distinct, duplicates int) {
	t.Helper()
	last, seen := map[string]string{}, map[string]bool{}
	for _, id := range ids {
		if seen[id] {
			duplicates++
			continue
		}
		seen[id] = true
		key := id[:len(id)-7]
		require.Less(t, last[key], id, "order of key %s", key)
		last[key] = id
	}
	return len(seen), duplicates
}
