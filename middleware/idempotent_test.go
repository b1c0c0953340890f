package middleware_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/dedup"
	"github.com/millrace-go/millrace/middleware"
)

// consumer is an idempotent handler with its store and its counts.
type consumer struct {
	store  *flaky
	events events
	calls  atomic.Int64
	handle message.HandlerFunc
}

func newConsumer(t testing.TB, cfg middleware.IdempotentConfig, h message.HandlerFunc) *consumer {
	t.Helper()
	c := &consumer{store: newFlaky()}
	cfg.Consumer, cfg.OnEvent = "billing", c.events.add
	m, err := middleware.Idempotent(c.store, cfg)
	require.NoError(t, err)
	c.handle = m(func(msg *message.Message) ([]*message.Message, error) {
		c.calls.Add(1)
		return h(msg)
	})
	return c
}

func (c *consumer) deliver(ctx context.Context, id string) error {
	_, err := c.handle(delivery(ctx, id, "payload of "+id))
	return err
}

func succeed(*message.Message) ([]*message.Message, error) { return nil, nil }
func fail(*message.Message) ([]*message.Message, error)    { return nil, errHandler }

func TestADuplicateOfADoneMessageIsAcknowledgedWithoutRunning(t *testing.T) {
	t.Parallel()
	c := newConsumer(t, middleware.IdempotentConfig{}, succeed)
	for range 3 {
		require.NoError(t, c.deliver(t.Context(), "m"))
	}
	require.NoError(t, c.deliver(t.Context(), "other"))
	require.EqualValues(t, 2, c.calls.Load())
	require.Equal(t, map[middleware.Event]int{middleware.EventHandled: 2, middleware.EventDuplicate: 2}, c.events.all())
}

func TestAHandlerErrorGivesTheClaimBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		results := []error{errHandler, errHandler, nil}
		var c *consumer
		c = newConsumer(t, middleware.IdempotentConfig{}, func(*message.Message) ([]*message.Message, error) {
			return nil, results[c.calls.Load()-1]
		})
		begin := time.Now()
		require.ErrorIs(t, c.deliver(t.Context(), "m"), errHandler)
		require.ErrorIs(t, c.deliver(t.Context(), "m"), errHandler)
		require.NoError(t, c.deliver(t.Context(), "m"))
		require.Zero(t, time.Since(begin), "no lease has to run out")
	})
}

// Of many deliveries at once one runs. None of the others may be acknowledged before it has succeeded.
func TestConcurrentDuplicatesAreNeverAcknowledgedEarly(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newConsumer(t, middleware.IdempotentConfig{}, func(*message.Message) ([]*message.Message, error) {
			time.Sleep(5 * time.Second)
			return nil, errHandler
		})
		var inProgress, failed atomic.Int64
		var wg sync.WaitGroup
		begin := time.Now()
		for range 200 {
			wg.Go(func() {
				switch err := c.deliver(t.Context(), "m"); {
				case errors.Is(err, middleware.ErrInProgress):
					inProgress.Add(1)
					require.Positive(t, middleware.Delay(err), "says when to come again")
					require.InDelta(t, 2*time.Second, time.Since(begin), float64(300*time.Millisecond))
				case errors.Is(err, errHandler):
					failed.Add(1)
				default:
					t.Errorf("acknowledged though nobody succeeded: %v", err)
				}
			})
		}
		wg.Wait()
		require.EqualValues(t, 1, failed.Load())
		require.EqualValues(t, 199, inProgress.Load())
		require.EqualValues(t, 1, c.calls.Load())
	})
}

func TestAConcurrentDuplicateWaitsAWhileForTheFirst(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newConsumer(t, middleware.IdempotentConfig{}, func(*message.Message) ([]*message.Message, error) {
			time.Sleep(time.Second)
			return nil, nil
		})
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() { require.NoError(t, c.deliver(t.Context(), "m")) })
		}
		wg.Wait()
		require.EqualValues(t, 1, c.calls.Load())
		require.Equal(t, map[middleware.Event]int{middleware.EventHandled: 1, middleware.EventDuplicate: 19}, c.events.all())
	})
}

func TestAMessageOfACrashedProcessRunsWhenItsLeaseEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var claim middleware.Claim
		c := newConsumer(t, middleware.IdempotentConfig{IgnorePayload: true}, func(msg *message.Message) ([]*message.Message, error) {
			claim, _ = middleware.Fence(msg.Context())
			return nil, nil
		})
		_, err := c.store.Claim(t.Context(), dedup.Key{Consumer: "billing", MessageID: "m"},
			dedup.Request{Owner: "crashed", Lease: 3 * time.Second, TTL: time.Hour})
		require.NoError(t, err)
		require.ErrorIs(t, c.deliver(t.Context(), "m"), middleware.ErrInProgress)
		require.NoError(t, c.deliver(t.Context(), "m"))
		require.EqualValues(t, 2, claim.Fence)
		require.Equal(t, 2, claim.Attempts)
		require.Equal(t, dedup.Key{Consumer: "billing", MessageID: "m"}, claim.Key)
	})
}

func TestTheClaimLastsAsLongAsTheHandlerRuns(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newConsumer(t, middleware.IdempotentConfig{}, func(msg *message.Message) ([]*message.Message, error) {
			time.Sleep(10 * time.Minute)
			return nil, msg.Context().Err()
		})
		var wg sync.WaitGroup
		wg.Go(func() { require.NoError(t, c.deliver(t.Context(), "m")) })
		for range 100 {
			time.Sleep(4 * time.Second)
			require.ErrorIs(t, c.deliver(t.Context(), "m"), middleware.ErrInProgress)
		}
		wg.Wait()
		require.EqualValues(t, 1, c.calls.Load())
		require.InDelta(t, 60, c.store.count("renew"), 2, "three times per lease of 30 s")
	})
}

func TestAShortOutageOfTheStoreDoesNotEndTheWork(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newConsumer(t, middleware.IdempotentConfig{}, func(msg *message.Message) ([]*message.Message, error) {
			time.Sleep(2 * time.Minute)
			return nil, msg.Context().Err()
		})
		var wg sync.WaitGroup
		wg.Go(func() { require.NoError(t, c.deliver(t.Context(), "m")) })
		time.Sleep(15 * time.Second)
		c.store.set("renew", true)
		time.Sleep(15 * time.Second)
		c.store.set("renew", false)
		wg.Wait()
	})
}

// The process that lost its claim must neither be acknowledged nor send its messages: another has
// taken over and sends its own.
func TestAHandlerThatLostItsClaimIsStoppedAndItsOutputDiscarded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		var stoppedAfter time.Duration
		var c *consumer
		c2 := newConsumer(t, middleware.IdempotentConfig{}, func(*message.Message) ([]*message.Message, error) {
			return []*message.Message{message.NewMessage("x", []byte("second"))}, nil
		})
		c = newConsumer(t, middleware.IdempotentConfig{}, func(msg *message.Message) ([]*message.Message, error) {
			<-msg.Context().Done()
			stoppedAfter = time.Since(begin)
			require.ErrorIs(t, context.Cause(msg.Context()), middleware.ErrLeaseLost)
			time.Sleep(10 * time.Second) // and does not listen
			return []*message.Message{message.NewMessage("x", []byte("first"))}, nil
		})
		c2.store.store = c.store.store // another process with the same store
		c.store.set("renew", true)

		var wg sync.WaitGroup
		wg.Go(func() {
			out, err := c.handle(delivery(t.Context(), "m", "p"))
			require.ErrorIs(t, err, middleware.ErrLeaseLost)
			require.Empty(t, out)
		})
		time.Sleep(31 * time.Second)
		out, err := c2.handle(delivery(t.Context(), "m", "p"))
		require.NoError(t, err)
		require.Equal(t, "second", string(out[0].Payload))
		wg.Wait()
		require.Equal(t, 27*time.Second, stoppedAfter, "a tenth of the lease before its end")
		require.Equal(t, map[middleware.Event]int{middleware.EventLeaseLost: 1}, c.events.all())

		out, err = c.handle(delivery(t.Context(), "m", "p"))
		require.NoError(t, err)
		require.Equal(t, "second", string(out[0].Payload), "a duplicate sends what was remembered")
	})
}

func TestAClaimTakenAwayStopsTheHandlerAtTheNextHeartbeat(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newConsumer(t, middleware.IdempotentConfig{}, func(msg *message.Message) ([]*message.Message, error) {
			begin := time.Now()
			<-msg.Context().Done()
			require.Equal(t, 10*time.Second, time.Since(begin))
			return nil, msg.Context().Err()
		})
		var wg sync.WaitGroup
		wg.Go(func() {
			err := c.deliver(t.Context(), "m")
			require.ErrorIs(t, err, middleware.ErrLeaseLost)
			require.ErrorIs(t, err, context.Canceled)
		})
		synctest.Wait()
		c.store.forget()
		wg.Wait()
	})
}

func TestASuccessThatCannotBeRecordedIsAcknowledgedAllTheSame(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newConsumer(t, middleware.IdempotentConfig{}, succeed)
		c.store.set("done", true)
		ctx, cancel := context.WithCancel(t.Context())
		cancelled := time.AfterFunc(time.Second, cancel) // a shutdown does not end the tries
		defer cancelled.Stop()
		begin := time.Now()
		require.NoError(t, c.deliver(ctx, "m"))
		require.Equal(t, 30*time.Second, time.Since(begin), "it is tried for one lease")
		require.Greater(t, c.store.count("done"), 5)
		require.Greater(t, c.store.count("renew"), 1, "while the claim is kept")
		require.Equal(t, map[middleware.Event]int{middleware.EventDoneFailed: 1}, c.events.all())
	})
}

func TestASuccessIsRecordedWhenTheStoreComesBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newConsumer(t, middleware.IdempotentConfig{}, succeed)
		c.store.set("done", true)
		var wg sync.WaitGroup
		wg.Go(func() { require.NoError(t, c.deliver(t.Context(), "m")) })
		time.Sleep(8 * time.Second)
		c.store.set("done", false)
		wg.Wait()
		require.NoError(t, c.deliver(t.Context(), "m"))
		require.EqualValues(t, 1, c.calls.Load())
	})
}

func TestAForgottenClaimIsReportedWhenItIsDone(t *testing.T) {
	t.Parallel()
	var c *consumer
	c = newConsumer(t, middleware.IdempotentConfig{}, func(*message.Message) ([]*message.Message, error) {
		c.store.forget()
		return nil, nil
	})
	require.NoError(t, c.deliver(t.Context(), "m"))
	require.Equal(t, map[middleware.Event]int{middleware.EventRecreated: 1}, c.events.all())
}

func TestAMessageBegunTooOftenIsGivenUpWithoutRunning(t *testing.T) {
	t.Parallel()
	c := newConsumer(t, middleware.IdempotentConfig{MaxClaims: 3}, fail)
	for range 3 {
		require.ErrorIs(t, c.deliver(t.Context(), "m"), errHandler)
	}
	err := c.deliver(t.Context(), "m")
	require.ErrorIs(t, err, middleware.ErrTooManyClaims)
	require.True(t, middleware.IsPermanent(err))
	require.Equal(t, "too_many_claims", middleware.Reason(err))
	require.EqualValues(t, 3, c.calls.Load())
}

func TestAnotherPayloadUnderAKnownIDIsGivenUp(t *testing.T) {
	t.Parallel()
	c := newConsumer(t, middleware.IdempotentConfig{}, succeed)
	require.NoError(t, c.deliver(t.Context(), "m"))
	_, err := c.handle(delivery(t.Context(), "m", "something else"))
	require.ErrorIs(t, err, middleware.ErrKeyReused)
	require.True(t, middleware.IsPermanent(err))
	require.Equal(t, "idempotency_key_reused", middleware.Reason(err))

	c = newConsumer(t, middleware.IdempotentConfig{IgnorePayload: true}, succeed)
	require.NoError(t, c.deliver(t.Context(), "m"))
	_, err = c.handle(delivery(t.Context(), "m", "something else"))
	require.NoError(t, err)
}

func TestAnotherPayloadUnderADerivedIDIsADuplicate(t *testing.T) {
	t.Parallel()
	c := newConsumer(t, middleware.IdempotentConfig{}, succeed)
	id := dedup.DerivedID(dedup.Key{Consumer: "orders", MessageID: "m"}, 0)
	for i := range 2 {
		_, err := c.handle(delivery(t.Context(), id, fmt.Sprint("made at ", i)))
		require.NoError(t, err)
	}
	require.EqualValues(t, 1, c.calls.Load())
}

func TestWithoutTheStoreNothingRunsAndNothingLoops(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newConsumer(t, middleware.IdempotentConfig{}, succeed)
		c.store.set("claim", true)
		const workers = 50
		var nacks atomic.Int64
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var wg sync.WaitGroup
		for w := range workers {
			wg.Go(func() { // a broker that delivers again at once
				for ctx.Err() == nil {
					err := c.deliver(ctx, fmt.Sprint(w))
					if ctx.Err() == nil {
						require.ErrorIs(t, err, middleware.ErrStoreUnavailable)
						require.Positive(t, middleware.Delay(err))
						require.False(t, middleware.IsPermanent(err))
						nacks.Add(1)
					}
				}
			})
		}
		wg.Wait()
		require.Zero(t, c.calls.Load())
		require.LessOrEqual(t, nacks.Load(), int64(workers*31), "each delivery takes two seconds")
		require.Less(t, c.store.count("claim"), workers+40, "the store is left alone")

		c.store.set("claim", false)
		time.Sleep(5 * time.Second)
		for w := range workers {
			require.NoError(t, c.deliver(t.Context(), fmt.Sprint(w)), "it goes on when the store is back")
		}
	})
}

func TestFailOpenRunsWithoutAClaim(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newConsumer(t, middleware.IdempotentConfig{FailOpen: true}, func(msg *message.Message) ([]*message.Message, error) {
			_, claimed := middleware.Fence(msg.Context())
			require.False(t, claimed)
			return []*message.Message{message.NewMessage("x", nil)}, nil
		})
		c.store.set("claim", true)
		begin := time.Now()
		var ids []string
		for range 10 {
			out, err := c.handle(delivery(t.Context(), "m", "p"))
			require.NoError(t, err)
			ids = append(ids, out[0].UUID)
		}
		require.Zero(t, time.Since(begin))
		require.EqualValues(t, 10, c.calls.Load())
		for _, id := range ids {
			require.Equal(t, ids[0], id)
		}
	})
}

func TestAStoreThatIsRefusedByItsCheckRunsNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := &unchecked{Memory: new(dedup.Memory), err: errors.New("it evicts")}
		m := must(t)(middleware.Idempotent(store, middleware.IdempotentConfig{Consumer: "c"}))
		calls := 0
		h := m(func(*message.Message) ([]*message.Message, error) { calls++; return nil, nil })
		_, err := h(delivery(t.Context(), "m", "p"))
		require.ErrorIs(t, err, middleware.ErrStoreUnavailable)
		require.ErrorContains(t, err, "it evicts")
		require.Zero(t, calls)
		store.err = nil
		_, err = h(delivery(t.Context(), "m", "p"))
		require.NoError(t, err)
	})
}

type unchecked struct {
	*dedup.Memory
	err error
}

func (u *unchecked) Check(context.Context) error { return u.err }

func TestAShutdownGivesTheClaimBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newConsumer(t, middleware.IdempotentConfig{}, func(msg *message.Message) ([]*message.Message, error) {
			<-msg.Context().Done()
			return nil, msg.Context().Err()
		})
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { require.ErrorIs(t, c.deliver(ctx, "m"), context.Canceled) })
		wg.Go(func() { require.ErrorIs(t, c.deliver(ctx, "m"), context.Canceled) }) // waits for the first
		synctest.Wait()
		cancel()
		wg.Wait()
		a, err := c.store.Claim(t.Context(), dedup.Key{Consumer: "billing", MessageID: "m"},
			dedup.Request{Owner: "next process", Lease: time.Second, TTL: time.Hour})
		require.NoError(t, err)
		require.Equal(t, dedup.Claimed, a.Verdict)
	})
}

// The claim was made, but the delivery ended before it heard of that.
func TestAClaimWhoseAnswerNobodyWaitedForIsGivenBack(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	store := &deaf{Memory: new(dedup.Memory), cancel: cancel}
	h := must(t)(middleware.Idempotent(store, middleware.IdempotentConfig{Consumer: "c"}))(succeed)
	_, err := h(delivery(ctx, "m", "p"))
	require.ErrorIs(t, err, context.Canceled)
	a, err := store.Memory.Claim(t.Context(), dedup.Key{Consumer: "c", MessageID: "m"}, dedup.Request{Owner: "next", Lease: 1e6, TTL: 1e9})
	require.NoError(t, err)
	require.Equal(t, dedup.Claimed, a.Verdict)
}

// deaf claims, and is cancelled before the answer, or fails with err.
type deaf struct {
	*dedup.Memory
	cancel func()
	err    error
}

func (d *deaf) Claim(ctx context.Context, k dedup.Key, r dedup.Request) (dedup.Answer, error) {
	_, _ = d.Memory.Claim(ctx, k, r)
	d.cancel()
	return dedup.Answer{}, errors.Join(d.err, ctx.Err())
}

// The claim was made, but its answer never came: the next delivery need not wait for the end of a lease
// that nobody holds.
func TestAClaimWhoseAnswerNeverCameIsGivenBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := &deaf{Memory: new(dedup.Memory), cancel: func() {}, err: errDown}
		h := must(t)(middleware.Idempotent(store, middleware.IdempotentConfig{Consumer: "c"}))(succeed)
		_, err := h(delivery(t.Context(), "m", "p"))
		require.ErrorIs(t, err, middleware.ErrStoreUnavailable)
		a, err := store.Memory.Claim(t.Context(), dedup.Key{Consumer: "c", MessageID: "m"}, dedup.Request{Owner: "next", Lease: 1e6, TTL: 1e9})
		require.NoError(t, err)
		require.Equal(t, dedup.Claimed, a.Verdict)
	})
}

func TestAPanicGivesTheClaimBackAndGoesOn(t *testing.T) {
	t.Parallel()
	c := newConsumer(t, middleware.IdempotentConfig{}, func(*message.Message) ([]*message.Message, error) { panic("boom") })
	for range 2 {
		require.PanicsWithValue(t, "boom", func() { _ = c.deliver(t.Context(), "m") })
	}
	require.EqualValues(t, 2, c.calls.Load())
}

func TestReturnedMessagesAreSentAgainWithTheSameIDs(t *testing.T) {
	t.Parallel()
	c := newConsumer(t, middleware.IdempotentConfig{}, func(msg *message.Message) ([]*message.Message, error) {
		a := message.NewMessage("random", []byte("\x00\xffbytes"))
		a.Metadata.Set("name", "\xff not utf-8")
		return []*message.Message{a, msg}, nil // its own message is passed on, too
	})
	in := delivery(t.Context(), "m", "p")
	first, err := c.handle(in)
	require.NoError(t, err)
	require.Len(t, first, 2)
	require.Equal(t, "m", in.UUID, "the message that came is left as it is")
	require.NotEqual(t, first[0].UUID, first[1].UUID)
	for range 3 {
		again, err := c.handle(delivery(t.Context(), "m", "p"))
		require.NoError(t, err)
		require.Len(t, again, 2)
		for i := range again {
			require.True(t, first[i].Equals(again[i]), "%v", again[i])
			require.True(t, dedup.IsDerived(again[i].UUID))
		}
	}
	require.EqualValues(t, 1, c.calls.Load())
}

func TestReturnedMessagesThatAreTooLargeAreAnErrorAtOnce(t *testing.T) {
	t.Parallel()
	c := newConsumer(t, middleware.IdempotentConfig{}, func(*message.Message) ([]*message.Message, error) {
		return []*message.Message{message.NewMessage("", make([]byte, dedup.MaxResult))}, nil
	})
	for range 2 {
		err := c.deliver(t.Context(), "m")
		require.ErrorIs(t, err, middleware.ErrOutputTooLarge)
		require.True(t, middleware.IsPermanent(err))
	}
	require.EqualValues(t, 2, c.calls.Load(), "it is not recorded as done")
}

func TestAMessageOrAConsumerWithoutANameIsRefused(t *testing.T) {
	t.Parallel()
	c := newConsumer(t, middleware.IdempotentConfig{}, succeed)
	err := c.deliver(t.Context(), "")
	require.ErrorIs(t, err, middleware.ErrNoMessageID)
	require.True(t, middleware.IsPermanent(err))

	m := must(t)(middleware.Idempotent(new(dedup.Memory), middleware.IdempotentConfig{}))
	_, err = m(succeed)(delivery(t.Context(), "m", "p"))
	require.ErrorIs(t, err, middleware.ErrNoConsumer)
	require.ErrorContains(t, err, "set Consumer")
}

func TestWrongConfigurationIsOneErrorThatNamesEverything(t *testing.T) {
	t.Parallel()
	_, err := middleware.Idempotent(nil, middleware.IdempotentConfig{
		Lease: time.Millisecond, BusyWait: -1, DoneTTL: -1, MaxClaims: -1, StoreTimeout: -1,
	})
	for _, part := range []string{"no dedup store", "Lease", "BusyWait", "DoneTTL", "MaxClaims", "StoreTimeout"} {
		require.ErrorContains(t, err, part)
	}
	require.Equal(t, 6, len(strings.Split(err.Error(), "\n")), err)
}
