package forwarder

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/outbox"
	"github.com/millrace-go/millrace/outbox/outboxtest"
)

// A database that refuses at once would otherwise be asked as fast as the machine can.
func TestStopsThatCannotBeReadAreAskedForWithPauses(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := outboxtest.NewMemory()
		var asked atomic.Int64
		var down atomic.Bool
		fill(store, 100, 1)
		b := &broker{}
		b.set(func(*message.Message) error { return refusedError{"no_route"} })
		store.Intercept(func(op string) error {
			if op != "Stops" || !down.Load() {
				return nil
			}
			if asked.Add(1) > 1000 {
				down.Store(false) // so that the test ends
			}
			return errors.New("connection refused")
		})
		_, _, _ = start(t, store, b, Config{RetryBase: time.Second, RetryMax: time.Second})
		until(t, 10*time.Second, "the key is stopped", func() bool { return store.Refusals() > 0 })
		down.Store(true)
		store.Remove(1) // the store does not agree any more with what is remembered
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Positive(t, asked.Load())
		require.Less(t, asked.Load(), int64(500))
		down.Store(false)
		b.set(nil)
		until(t, time.Minute, "all are sent", func() bool { return len(b.ids()) == 99 })
	})
}

// forgetful loses the reply to the first attempt of every other message that is written down before it is made.
type forgetful struct {
	*outboxtest.Memory
	mu   sync.Mutex
	seen map[int64]bool
}

func (f *forgetful) Store() outbox.Store { return f }

func (f *forgetful) Subscribe() (*outbox.Wake, func()) { return nil, func() {} }

func (f *forgetful) Attempt(ctx context.Context, g outbox.Grant, r outbox.Ref, attempt int) (bool, error) {
	ok, err := f.Memory.Attempt(ctx, g, r, attempt)
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.seen[r.Pos] && r.Pos%2 == 1 {
		f.seen[r.Pos] = true
		return false, errors.New("connection lost")
	}
	return ok, err
}

// The second try finds the attempt written, and cannot know by whom. What is behind it of its key must wait.
func TestAnAttemptWhoseReplyIsLostDoesNotLetTheNextMessageOfItsKeyOvertake(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := &forgetful{Memory: outboxtest.NewMemory(), seen: map[int64]bool{}}
		fill(store.Memory, 60, 1)
		store.SetCrashes(5)
		b := &broker{}
		f, err := New(store, b, Config{})
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- f.Run(ctx) }()
		until(t, 10*time.Minute, "all are sent", func() bool { return len(b.ids()) >= 60 })
		distinct, duplicates := requireOrder(t, b.ids())
		require.Equal(t, 60, distinct)
		require.Zero(t, duplicates)
		cancel()
		require.NoError(t, <-done)
	})
}

// unwritable fails every attempt that is to be written, and panics when it is asked as fast as the machine can.
type unwritable struct {
	*outboxtest.Memory
	mu    sync.Mutex
	at    time.Time
	asked int
}

func (r *unwritable) Store() outbox.Store { return r }

func (r *unwritable) Subscribe() (*outbox.Wake, func()) { return nil, func() {} }

func (r *unwritable) Attempt(context.Context, outbox.Grant, outbox.Ref, int) (bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now := time.Now(); now.After(r.at) {
		r.at, r.asked = now, 0
	}
	if r.asked++; r.asked > 1000 {
		panic("the store is asked without a pause")
	}
	return false, errors.New("connection refused")
}

// What ends a session ends its publishing, also where there is something left to be sent.
func TestASessionThatLostItsLeaseDoesNotSpin(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := &unwritable{Memory: outboxtest.NewMemory()}
		fill(store.Memory, 50, 50)
		b := &broker{}
		b.set(func(msg *message.Message) error {
			if msg.UUID == "k0-000000" {
				return nil // the others are refused for what they are
			}
			return refusedError{"too_large"}
		})
		f, err := New(store, b, Config{RetryBase: time.Millisecond, RetryMax: time.Millisecond})
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- f.Run(ctx) }()
		until(t, time.Minute, "attempts cannot be written", func() bool {
			store.mu.Lock()
			defer store.mu.Unlock()
			return store.asked > 0
		})
		for range 5 {
			for replica := range store.Held() {
				store.Evict(replica)
			}
			time.Sleep(20 * time.Second)
		}
		cancel()
		<-done
	})
}
