package forwarder

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/internal/backoff"
	"github.com/millrace-go/millrace/outbox"
	"github.com/millrace-go/millrace/outbox/outboxtest"
)

func TestALeaseIsBelievedATenthLessThanItIsGranted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := &lease{length: 8 * time.Second}
		require.False(t, l.valid(time.Now()), "before the first registration")
		sent := time.Now()
		l.renewed(sent)
		require.True(t, l.valid(sent.Add(7199*time.Millisecond)))
		require.False(t, l.valid(sent.Add(7200*time.Millisecond)))
		l.renewed(sent.Add(10 * time.Second))
		require.True(t, l.valid(sent.Add(12*time.Second)), "a renewal revives it")
	})
}

func TestOneReplicaTakesAllLanesAndSeveralShareThem(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := outboxtest.NewMemory()
		pub := &broker{latency: time.Millisecond}
		held := func() []int { return slices.Sorted(maps.Values(store.Held())) }
		_, _, stop1 := start(t, store, pub, Config{})
		until(t, time.Second, "all lanes held", func() bool { return slices.Equal(held(), []int{64}) })
		_, _, stop2 := start(t, store, pub, Config{})
		until(t, 5*time.Second, "shared by two", func() bool { return slices.Equal(held(), []int{32, 32}) })
		_, _, stop3 := start(t, store, pub, Config{})
		until(t, 5*time.Second, "shared by three", func() bool {
			h := held()
			return len(h) == 3 && h[0]+h[1]+h[2] == 64 && h[2] <= 22 && h[0] >= 20
		})
		require.NoError(t, stop1())
		until(t, 2*time.Second, "shared by two again", func() bool { return slices.Equal(held(), []int{32, 32}) })
		require.NoError(t, stop2())
		require.NoError(t, stop3())
		require.Zero(t, store.Crashes(), "nobody vanished")
	})
}

func TestReplicasJoinAndLeaveWithoutLossReorderOrDuplicate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := outboxtest.NewMemory()
		pub := &broker{latency: 5 * time.Millisecond}
		var stopped atomic.Bool
		count := 0
		done := make(chan struct{})
		go func() {
			defer close(done)
			for ; !stopped.Load(); count++ {
				key := fmt.Sprintf("k%d", count%40)
				store.Insert(outboxtest.Entry{ID: fmt.Sprintf("%s-%06d", key, count), Topic: "t", Key: key})
				time.Sleep(5 * time.Millisecond)
			}
		}()
		var stops []func() error
		for i := range 12 {
			_, _, stop := start(t, store, pub, Config{})
			stops = append(stops, stop)
			time.Sleep(1300 * time.Millisecond)
			if i >= 2 {
				require.NoError(t, stops[0]())
				stops = stops[1:]
			}
		}
		stopped.Store(true)
		<-done
		until(t, 20*time.Second, "all settled", func() bool { return len(store.Waiting()) == 0 })
		distinct, duplicates := requireOrder(t, pub.ids())
		require.Equal(t, count, distinct)
		require.Zero(t, duplicates, "no duplicate work in quiet operation")
		for _, stop := range stops {
			require.NoError(t, stop())
		}
	})
}

func TestACrashIsTakenOverWhenTheLeaseEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := outboxtest.NewMemory()
		require.NoError(t, store.Join(t.Context(), "dead", 8*time.Second))
		grants, err := store.Claim(t.Context(), "dead", 64)
		require.NoError(t, err)
		require.Len(t, grants, 64)
		fill(store, 10, 10)
		pub := &broker{}
		began := time.Now()
		_, _, stop := start(t, store, pub, Config{})
		until(t, 10*time.Second, "all sent", func() bool { return len(store.Waiting()) == 0 })
		require.Greater(t, time.Since(began), 8*time.Second, "not before the lease has ended")
		until(t, 2*time.Second, "calm again", func() bool { return store.Crashes() == 0 })
		require.NoError(t, stop())
	})
}

func TestNothingIsHandedToThePublisherAfterTheLeaseHasEndedLocally(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := outboxtest.NewMemory()
		pub := &broker{}
		_, wake, stop := start(t, store, pub, Config{})
		time.Sleep(3 * time.Second)
		began := time.Now()
		store.Intercept(func(op string) error {
			if op == "Renew" {
				return errDown
			}
			return nil
		})
		n := 0
		for ; time.Since(began) < 12*time.Second; n++ {
			store.Insert(outboxtest.Entry{ID: fmt.Sprint(n), Topic: "t", Key: "k"})
			wake.ring(^uint64(0))
			time.Sleep(50 * time.Millisecond)
		}
		synctest.Wait()
		last := pub.got[len(pub.got)-1].at
		require.Less(t, last.Sub(began), 7300*time.Millisecond)
		require.Greater(t, last.Sub(began), 4*time.Second)
		store.Intercept(nil)
		until(t, 3*time.Second, "the lease is revived", func() bool { return len(pub.ids()) == n })
		require.NoError(t, stop())
		for i, s := range pub.got {
			require.Equal(t, fmt.Sprint(i), s.id, "each once, in order")
			require.Equal(t, "1", s.epoch, "nobody else took the lanes")
		}
	})
}

func TestADatabaseThatWasAwayForLongCausesNoDuplicate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := outboxtest.NewMemory()
		fill(store, 500, 50)
		pub := &broker{latency: 10 * time.Millisecond}
		_, _, stop := start(t, store, pub, Config{})
		time.Sleep(25 * time.Millisecond)
		store.Intercept(func(string) error { return errDown })
		time.Sleep(16 * time.Second)
		store.Intercept(nil)
		until(t, 20*time.Second, "all settled", func() bool { return len(store.Waiting()) == 0 })
		_, duplicates := requireOrder(t, pub.ids())
		require.Zero(t, duplicates)
		require.NoError(t, stop())
	})
}

func TestARenewalWhoseAnswerWasLostDoesNotEndTheLease(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := &lossyStore{Memory: outboxtest.NewMemory()}
		f, err := New(store, &broker{}, Config{})
		require.NoError(t, err)
		s := f.newSession(silent{})
		require.NoError(t, s.join(t.Context()))
		beat, unsure := int64(0), int64(0)
		for range 3 { // applied, but not answered
			_, _, err = s.renew(t.Context(), beat, unsure)
			require.Error(t, err)
			unsure++
			store.lose = !store.lose
			ok, next, err := s.renew(t.Context(), beat, unsure)
			require.NoError(t, err)
			require.True(t, ok)
			beat, unsure = next, 0
			store.lose = !store.lose
		}
		store.Evict(s.replica)
		store.lose = true
		ok, _, err := s.renew(t.Context(), beat, unsure)
		require.NoError(t, err)
		require.False(t, ok)
	})
}

// laggard is a database some way off, that is away for long.
type laggard struct {
	*outboxtest.Memory
	away atomic.Bool
}

func (l *laggard) Store() outbox.Store             { return l }
func (*laggard) Subscribe() (*outbox.Wake, func()) { return nil, func() {} }

func (l *laggard) Renew(ctx context.Context, replica string, beat int64, lease time.Duration, down []string) (bool, error) {
	if l.away.Load() {
		return false, errDown
	}
	if !backoff.Sleep(ctx, 10*time.Millisecond) {
		return false, ctx.Err()
	}
	return l.Memory.Renew(ctx, replica, beat, lease, down)
}

func TestAReplicaThatWasForgottenInALongOutageStartsAnew(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := &laggard{Memory: outboxtest.NewMemory()}
		pub := &broker{}
		f, err := New(store, pub, Config{})
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- f.Run(ctx) }()
		until(t, 5*time.Second, "it holds all lanes", func() bool { return f.Stats().Lanes == 64 })
		store.away.Store(true)
		store.Intercept(func(string) error { return errDown })
		time.Sleep(time.Hour)
		for id := range store.Held() { // another one was back first
			store.Evict(id)
		}
		store.Intercept(nil)
		store.away.Store(false)
		fill(store.Memory, 10, 1)
		until(t, time.Minute, "sent", func() bool { return len(pub.ids()) == 10 })
		cancel()
		require.NoError(t, <-done)
	})
}

// deaf is a database that does not answer the first question.
type deaf struct {
	*outboxtest.Memory
	asked atomic.Bool
}

func (d *deaf) Store() outbox.Store             { return d }
func (*deaf) Subscribe() (*outbox.Wake, func()) { return nil, func() {} }

func (d *deaf) Check(ctx context.Context) error {
	if d.asked.Swap(true) {
		return nil
	}
	<-ctx.Done()
	return ctx.Err()
}

func TestADatabaseThatDoesNotAnswerAtTheStartIsAskedAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := &deaf{Memory: outboxtest.NewMemory()}
		f, err := New(store, &broker{}, Config{})
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- f.Run(ctx) }()
		until(t, time.Minute, "it holds all lanes", func() bool { return f.Stats().Lanes == 64 })
		cancel()
		require.NoError(t, <-done)
	})
}

// hasty is a database that registers a replica and is slow to say so.
type hasty struct{ *outboxtest.Memory }

func (h hasty) Store() outbox.Store             { return h }
func (hasty) Subscribe() (*outbox.Wake, func()) { return nil, func() {} }

func (h hasty) Join(ctx context.Context, replica string, lease time.Duration) error {
	if err := h.Memory.Join(ctx, replica, lease); err != nil {
		return err
	}
	backoff.Sleep(ctx, time.Hour)
	return ctx.Err()
}

func TestAReplicaThatIsStoppedWhileItRegistersLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := hasty{outboxtest.NewMemory()}
		f, err := New(store, &broker{}, Config{})
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- f.Run(ctx) }()
		time.Sleep(time.Second)
		cancel()
		require.NoError(t, <-done)
		survey, err := store.Survey(t.Context())
		require.NoError(t, err)
		require.Zero(t, survey.Replicas)
	})
}

// A deadlock with a statement that was given up and goes on in the database.
func TestAReplicaThatMayNotLeaveAtOnceTriesAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := outboxtest.NewMemory()
		_, _, stop := start(t, store, &broker{}, Config{})
		until(t, time.Minute, "it holds all lanes", func() bool { return len(store.Held()) == 1 })
		refusals := 2
		store.Intercept(func(op string) error {
			if op == "Leave" && refusals > 0 {
				refusals--
				return errors.New("deadlock")
			}
			return nil
		})
		require.NoError(t, stop())
		survey, err := store.Survey(t.Context())
		require.NoError(t, err)
		require.Zero(t, survey.Replicas)
	})
}

// lossyStore applies renewals and loses the answer, unless told not to.
type lossyStore struct {
	*outboxtest.Memory
	lose bool // false: the answer is lost
}

func (l *lossyStore) Store() outbox.Store             { return l }
func (*lossyStore) Subscribe() (*outbox.Wake, func()) { return nil, func() {} }

func TestAReplicaThatWasForgottenStartsAnewAndLosesNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := outboxtest.NewMemory()
		fill(store, 2000, 40)
		pub := &broker{latency: 20 * time.Millisecond}
		_, _, stop := start(t, store, pub, Config{BatchRows: 50})
		for range 5 {
			time.Sleep(500 * time.Millisecond)
			for id := range store.Held() {
				store.Evict(id)
			}
		}
		until(t, time.Minute, "all settled", func() bool { return len(store.Waiting()) == 0 })
		distinct, _ := requireOrder(t, pub.ids())
		require.Equal(t, 2000, distinct)
		require.NoError(t, stop())
	})
}

func TestAReplicaThatWasPausedPastItsLeaseEndsNothingOfItsSuccessor(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := outboxtest.NewMemory()
		fill(store, 300, 100)
		paused, other := &broker{latency: 30 * time.Second}, &broker{}
		f, _, stop := start(t, store, paused, Config{PublishTimeout: time.Minute})
		until(t, time.Second, "in flight", func() bool { return f.Stats().Flying > 0 })
		// The process stands still as far as the database can see.
		for id := range store.Held() {
			store.Evict(id)
		}
		_, _, stop2 := start(t, store, other, Config{})
		until(t, 20*time.Second, "sent by the successor", func() bool { return len(store.Waiting()) == 0 })
		time.Sleep(time.Minute) // the late answers come in
		synctest.Wait()
		distinct, _ := requireOrder(t, append(other.ids(), paused.ids()...))
		require.Equal(t, 300, distinct)
		require.NoError(t, stop())
		require.NoError(t, stop2())
	})
}

func TestRunStartsWithoutADatabaseAndWithoutABroker(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := outboxtest.NewMemory()
		fill(store, 10, 2)
		store.Intercept(func(string) error { return errDown })
		pub := &broker{answer: func(*message.Message) error { return errDown }}
		f, _, stop := start(t, store, pub, Config{})
		time.Sleep(time.Minute)
		require.Error(t, f.Health(t.Context()))
		require.True(t, f.Condition().Live, "a new process would not help")
		store.Intercept(nil)
		time.Sleep(time.Minute)
		pub.set(nil)
		until(t, 10*time.Second, "all sent", func() bool { return len(store.Waiting()) == 0 })
		require.NoError(t, stop())
		require.NoError(t, f.Run(canceled(t)), "it may run again")
	})
}

func canceled(t *testing.T) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx
}

// Renew applies the renewal in any case.
func (l *lossyStore) Renew(ctx context.Context, replica string, beat int64, lease time.Duration, down []string) (bool, error) {
	ok, err := l.Memory.Renew(ctx, replica, beat, lease, down)
	if !l.lose && ok {
		return false, errDown
	}
	return ok, err
}
