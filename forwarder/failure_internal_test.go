package forwarder

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/outbox"
	"github.com/millrace-go/millrace/outbox/outboxtest"
)

// refusing answers with a refusal for the ids with that prefix.
func refusing(prefix, reason string) func(*message.Message) error {
	return func(m *message.Message) error {
		if strings.HasPrefix(m.UUID, prefix) {
			return refusedError{reason}
		}
		return nil
	}
}

func TestARefusedMessageIsTriedMaxAttemptsTimesAndParked(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := outboxtest.NewMemory()
		store.Insert(outboxtest.Entry{ID: "bad", Topic: "t", Key: "k"})
		fill(store, 1000, 20)
		pub := &broker{answer: refusing("bad", "no_route")}
		var stops []func() error
		for range 5 {
			_, _, stop := start(t, store, pub, Config{})
			stops = append(stops, stop)
		}
		until(t, time.Hour, "parked", func() bool { return len(store.Dead()) == 1 })
		require.Equal(t, 10, pub.tries("bad"))
		dead := store.Dead()[0]
		require.Equal(t, "bad", dead.ID)
		require.Equal(t, "no_route", dead.Why.Reason)
		require.Equal(t, 10, dead.Why.Attempt)
		for _, stop := range stops {
			require.NoError(t, stop())
		}
		distinct, _ := requireOrder(t, pub.ids())
		require.Equal(t, 1000, distinct)
		for i, s := range slices.DeleteFunc(pub.tried, func(s sent) bool { return s.id != "bad" }) {
			require.Equal(t, fmt.Sprint(i+1), s.attempt)
		}
	})
}

func TestARefusalStopsItsKeyAndNoOther(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := outboxtest.NewMemory()
		fill(store, 1000, 2) // k0 and k1 by turns; k0-000000 is first
		pub := &broker{answer: refusing("k0-000000", "no_route"), ordered: true}
		_, _, stop := start(t, store, pub, Config{RetryBase: 2 * time.Minute})
		until(t, 10*time.Second, "the other key sent", func() bool { return len(pub.ids()) == 500 })
		time.Sleep(time.Second)
		for i := range 10 { // more of the stopped key
			store.Insert(outboxtest.Entry{ID: fmt.Sprintf("k0-%06d", 100_000+i), Topic: "t", Key: "k0"})
		}
		time.Sleep(5 * time.Second)
		synctest.Wait()
		require.Len(t, pub.ids(), 500, "nothing of a stopped key overtakes the message that stopped it")
		pub.set(nil)
		until(t, 3*time.Hour, "all settled", func() bool { return len(store.Waiting()) == 0 })
		require.NoError(t, stop())
		distinct, duplicates := requireOrder(t, pub.ids())
		require.Zero(t, duplicates)
		require.Equal(t, 1010, distinct)
		require.Equal(t, pub.tries("k0-000000")-1, store.Refusals(), "each refusal was counted, and the last try was none")
	})
}

func TestAParkedMessageLetsItsKeyGo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := outboxtest.NewMemory()
		fill(store, 50, 1)
		pub := &broker{answer: refusing("k0-000000", "too_large")}
		_, _, stop := start(t, store, pub, Config{MaxAttempts: 3})
		until(t, time.Minute, "the rest sent", func() bool { return len(store.Waiting()) == 0 })
		require.Equal(t, 3, pub.tries("k0-000000"))
		require.Len(t, store.Dead(), 1)
		requireOrder(t, pub.ids())
		require.Len(t, pub.ids(), 49)
		require.NoError(t, stop())
	})
}

func TestSkipKeyLetsTheOthersOvertake(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := outboxtest.NewMemory()
		fill(store, 50, 1)
		pub := &broker{answer: refusing("k0-000000", "no_route")}
		_, _, stop := start(t, store, pub, Config{OnFailure: SkipKey, RetryBase: time.Hour, RetryMax: time.Hour})
		until(t, 5*time.Second, "the rest sent", func() bool { return len(pub.ids()) == 49 })
		require.NoError(t, stop())
	})
}

func TestAStopOutlivesItsHolder(t *testing.T) {
	t.Parallel()
	for _, crash := range []bool{false, true} {
		t.Run(fmt.Sprintf("crash %v", crash), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				store := outboxtest.NewMemory()
				fill(store, 100, 2)
				pub := &broker{answer: refusing("k0-000000", "no_route")}
				_, _, stop := start(t, store, pub, Config{RetryBase: 4 * time.Minute})
				until(t, 5*time.Second, "refused", func() bool { return store.Refusals() == 1 })
				if crash {
					store.Intercept(func(string) error { return errDown })
				}
				_ = stop()
				store.Intercept(nil)
				_, _, stop = start(t, store, pub, Config{RetryBase: 4 * time.Minute})
				time.Sleep(20 * time.Second)
				pub.set(nil)
				until(t, 2*time.Hour, "all settled", func() bool { return len(store.Waiting()) == 0 })
				requireOrder(t, pub.ids())
				require.NoError(t, stop())
			})
		})
	}
}

func TestAStopThatWasRemovedInTheStoreHoldsNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := outboxtest.NewMemory()
		fill(store, 10, 1)
		pub := &broker{answer: refusing("k0-000000", "no_route")}
		f, _, stop := start(t, store, pub, Config{RetryBase: time.Hour, RetryMax: time.Hour})
		until(t, 5*time.Second, "refused", func() bool { return store.Refusals() == 1 })
		// An operator discards the message and lifts its stop; the forwarder is not told.
		s := f.current.Load()
		lane := s.held()[outbox.Lane("k0")]
		_, err := store.Lift(t.Context(), lane.grant, "", "k0")
		require.NoError(t, err)
		store.Remove(1)
		until(t, 10*time.Second, "the rest sent", func() bool { return len(pub.ids()) == 9 })
		require.NoError(t, stop())
	})
}

func TestABrokerThatIsDownCostsNoAttemptAndNoOrder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := outboxtest.NewMemory()
		fill(store, 1000, 30)
		pub := &broker{answer: func(*message.Message) error { return errDown }, latency: time.Millisecond}
		f, _, stop := start(t, store, pub, Config{})
		time.Sleep(2 * time.Minute)
		require.ErrorContains(t, f.Health(t.Context()), "connection refused")
		require.Less(t, len(pub.tried), 700, "probes are single messages, with back-off")
		pub.set(nil)
		until(t, time.Minute, "all settled", func() bool { return len(store.Waiting()) == 0 })
		require.NoError(t, f.Health(t.Context()))
		require.Empty(t, store.Dead())
		require.Zero(t, store.Refusals())
		_, duplicates := requireOrder(t, pub.ids())
		require.Zero(t, duplicates)
		require.NoError(t, stop())
	})
}

func TestAFullQueueParksNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := outboxtest.NewMemory()
		fill(store, 500, 30)
		n := 0
		pub := &broker{}
		pub.answer = func(*message.Message) error { // four of five are nacked
			if n++; n%5 != 0 {
				return errors.New("nack")
			}
			return nil
		}
		_, _, stop := start(t, store, pub, Config{MaxAttempts: 2})
		until(t, time.Hour, "all settled", func() bool { return len(store.Waiting()) == 0 })
		require.Empty(t, store.Dead())
		requireOrder(t, pub.ids())
		require.NoError(t, stop())
	})
}

func TestWhenEverythingIsRefusedAlikeTheDestinationIsAtFault(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := outboxtest.NewMemory()
		fill(store, 400, 100)
		pub := &broker{answer: refusing("", "no_route")}
		f, _, stop := start(t, store, pub, Config{MaxAttempts: 3, RetryMax: 10 * time.Second})
		time.Sleep(2 * time.Minute) // the attempts, if they counted, are used up in 20 s
		require.Error(t, f.Health(t.Context()))
		require.Empty(t, store.Dead(), "nothing got through: it is not the messages")
		pub.set(nil)
		until(t, time.Minute, "all settled", func() bool { return len(store.Waiting()) == 0 })
		requireOrder(t, pub.ids())
		require.NoError(t, stop())
	})
}

func TestManyPoisonedMessagesDoNotHideAGoodOne(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := outboxtest.NewMemory()
		for i := range 100 {
			store.Insert(outboxtest.Entry{ID: fmt.Sprint("bad", i), Topic: "t", Lane: i % 64})
		}
		store.Insert(outboxtest.Entry{ID: "good", Topic: "t"})
		pub := &broker{answer: refusing("bad", "no_route")}
		_, _, stop := start(t, store, pub, Config{})
		until(t, 10*time.Minute, "good one sent", func() bool { return slices.Contains(pub.ids(), "good") })
		require.NoError(t, stop())
	})
}

func TestARowThatCannotBeDecodedIsParked(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := outboxtest.NewMemory()
		store.Insert(outboxtest.Entry{ID: "k0-bad", Topic: "t", Key: "k0", Err: errors.New("metadata: not JSON")})
		fill(store, 10, 1)
		pub := &broker{}
		_, _, stop := start(t, store, pub, Config{})
		until(t, 5*time.Second, "all gone", func() bool { return len(store.Waiting()) == 0 })
		require.Equal(t, "encoding", store.Dead()[0].Why.Reason)
		require.Len(t, pub.ids(), 10)
		require.NoError(t, stop())
	})
}

func TestDelayedMessagesAreSentWhenTheyAreDueAndHoldNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := outboxtest.NewMemory()
		store.Insert(outboxtest.Entry{ID: "later", Topic: "t", Key: "k0", Delay: 10 * time.Second})
		fill(store, 10, 1)
		pub := &broker{}
		began := time.Now()
		_, _, stop := start(t, store, pub, Config{})
		until(t, time.Second, "the rest sent", func() bool { return len(pub.ids()) == 10 })
		until(t, 20*time.Second, "the delayed one sent", func() bool { return len(pub.ids()) == 11 })
		require.InDelta(t, 10, time.Since(began).Seconds(), 0.02)
		require.NoError(t, stop())
	})
}

func TestAConfirmedMessageIsNotPublishedAgainWhileSettlingFails(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := outboxtest.NewMemory()
		fill(store, 1000, 100)
		store.Intercept(func(op string) error {
			if op == "Settle" {
				return errDown
			}
			return nil
		})
		pub := &broker{}
		f, _, stop := start(t, store, pub, Config{})
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Len(t, pub.ids(), 1000)
		fill(store, 10, 10)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		require.Len(t, pub.ids(), 1000, "reading has stopped")
		require.ErrorContains(t, f.Health(t.Context()), "cannot be settled")
		require.Equal(t, 64, f.Stats().Lanes, "the lanes are kept")
		store.Intercept(nil)
		until(t, 10*time.Second, "all settled", func() bool { return len(store.Waiting()) == 0 })
		require.Len(t, pub.ids(), 1010)
		require.NoError(t, f.Health(t.Context()))
		require.NoError(t, stop())
	})
}

func TestARowLockedByOthersIsSettledLaterAndPublishedOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := outboxtest.NewMemory()
		fill(store, 5, 5)
		unlock := store.Lock(3)
		pub := &broker{}
		_, _, stop := start(t, store, pub, Config{})
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Len(t, store.Waiting(), 1)
		unlock()
		until(t, 3*time.Second, "all settled", func() bool { return len(store.Waiting()) == 0 })
		require.Len(t, pub.ids(), 5)
		require.NoError(t, stop())
	})
}

// plainBroker is a Watermill publisher and nothing more.
type plainBroker struct {
	mu    sync.Mutex
	tried []string
	fail  func(id string) error
	block chan struct{}
}

func (p *plainBroker) Close() error { return nil }
func (p *plainBroker) Publish(_ string, msgs ...*message.Message) error {
	p.mu.Lock()
	fail, block := p.fail, p.block
	p.mu.Unlock()
	if block != nil {
		<-block
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tried = append(p.tried, msgs[0].UUID)
	if fail != nil {
		return fail(msgs[0].UUID)
	}
	return nil
}

func (p *plainBroker) tries(id string) (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, other := range p.tried {
		if other == id {
			n++
		}
	}
	return n
}

func TestAPlainPublishersErrorCountsOnlyIfOthersGotThrough(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := outboxtest.NewMemory()
		pub := &plainBroker{fail: func(string) error { return errDown }}
		fill(store, 100, 20)
		_, _, stop := start(t, store, pub, Config{MaxAttempts: 3, RetryMax: 10 * time.Second})
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		require.Empty(t, store.Dead())
		require.Zero(t, store.Refusals(), "nothing got through: nobody's fault")

		bad := func(id string) error {
			if id == "k3-000003" {
				return errors.New("frame too large")
			}
			return nil
		}
		pub.mu.Lock()
		pub.fail = bad
		pub.tried = nil
		pub.mu.Unlock()
		for i := range 1000 { // traffic that gets through
			store.Insert(outboxtest.Entry{ID: fmt.Sprint("other", i), Topic: "t", Lane: i % 64})
			time.Sleep(100 * time.Millisecond)
		}
		until(t, time.Minute, "all gone", func() bool { return len(store.Waiting()) == 0 })
		require.Len(t, store.Dead(), 1)
		require.Equal(t, "publish_error", store.Dead()[0].Why.Reason)
		require.LessOrEqual(t, pub.tries("k3-000003"), 3+3)
		require.NoError(t, stop())
	})
}

func TestAPublisherThatDoesNotReturnIsLeftAndSendsNothingElse(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := outboxtest.NewMemory()
		fill(store, 100, 10)
		stuck, fine := &plainBroker{block: make(chan struct{})}, &plainBroker{}
		f, _, stop := start(t, store, stuck, Config{})
		until(t, time.Minute, "all in the stuck one's hands", func() bool { return f.Stats().Flying > 0 })
		time.Sleep(13 * time.Second)
		require.ErrorContains(t, f.Health(t.Context()), "does not return")
		_, _, stop2 := start(t, store, fine, Config{})
		until(t, 2*time.Minute, "all sent by the other replica", func() bool { return len(store.Waiting()) == 0 })
		require.Equal(t, map[string]int{}, func() map[string]int { m := store.Held(); clear(m); return m }())
		close(stuck.block)
		synctest.Wait()
		require.NoError(t, stop2())
		_ = stop()
		requireOrder(t, fine.tried)
	})
}

func TestStopWaitsForTheBrokersAnswersAndSettlesThem(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := outboxtest.NewMemory()
		fill(store, 1000, 200)
		pub := &broker{latency: 2 * time.Second}
		f, _, stop := start(t, store, pub, Config{})
		until(t, 5*time.Second, "in flight", func() bool { return f.Stats().Flying >= 200 })
		require.NoError(t, stop())
		require.Equal(t, 1000-len(pub.ids()), len(store.Waiting()), "what was confirmed is settled")
		require.Empty(t, store.Held())
		require.Zero(t, store.Crashes())
	})
}

func TestStopKeepsTheLanesWhenAnAnswerIsMissing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := outboxtest.NewMemory()
		fill(store, 100, 20)
		pub := &broker{latency: time.Minute}
		f, _, stop := start(t, store, pub, Config{PublishTimeout: 2 * time.Minute})
		until(t, 5*time.Second, "in flight", func() bool { return f.Stats().Flying > 0 })
		began := time.Now()
		require.Error(t, stop())
		require.Less(t, time.Since(began), 8*time.Second)
		require.Len(t, store.Held(), 1, "the lease runs out")
		require.Len(t, store.Waiting(), 100)
	})
}

func TestAMessageThatKillsItsProcessIsFoundAndParked(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := outboxtest.NewMemory()
		fill(store, 200, 40)
		pub := &broker{}
		attempts := 0
		for range 30 {
			if len(store.Waiting()) == 0 {
				break
			}
			// The process dies when it publishes this one: nothing it does reaches the store any more.
			died := make(chan struct{})
			var once sync.Once
			pub.set(func(m *message.Message) error {
				select {
				case <-died:
					return errDown
				default:
				}
				if m.UUID == "k7-000007" {
					attempts++
					once.Do(func() { close(died) })
					store.Intercept(func(string) error { return errDown })
					return errDown
				}
				return nil
			})
			_, _, stop := start(t, store, pub, Config{MaxAttempts: 3})
			for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
				synctest.Wait()
				select {
				case <-died:
					end = time.Time{}
				default:
				}
			}
			_ = stop()
			store.Intercept(nil)
			time.Sleep(10 * time.Second)
		}
		require.Len(t, store.Dead(), 1)
		require.Equal(t, "k7-000007", store.Dead()[0].ID)
		require.LessOrEqual(t, attempts, 3+3)
		distinct, _ := requireOrder(t, pub.ids())
		require.Equal(t, 199, distinct)
	})
}
