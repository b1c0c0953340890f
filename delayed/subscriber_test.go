package delayed_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/delayed"
	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/middleware"
	"github.com/millrace-go/millrace/millracetest"
	"github.com/millrace-go/millrace/store"
)

func TestAMessageThatFailsComesBackToItsHandlerAlone(t *testing.T) {
	t.Parallel()
	eachStore(t, func(t *testing.T, st store.Store) {
		b := millracetest.NewBroker(millracetest.Faults{})
		var billing, shipping calls
		consume(t, b.Subscriber("billing"), st, quickConfig("billing"), func(m *message.Message) error {
			billing.add(m.UUID, " ", middleware.Attempt(m.Context()), " ", string(m.Payload), " ", m.Metadata.Get("name"))
			if middleware.Attempt(m.Context()) < 4 {
				return errHandler
			}
			return nil
		}, quick(t, st, nil)...)
		consume(t, b.Subscriber("shipping"), st, quickConfig("shipping"), func(m *message.Message) error {
			shipping.add(m.UUID)
			return nil
		}, quick(t, st, nil)...)

		require.NoError(t, b.Publish("orders", order("m", "")))
		quiet(t, b, st, "billing")
		var want []string
		for n := 1; n <= 4; n++ {
			want = append(want, fmt.Sprintf("m %d payload \x00\xff of m value of m", n))
		}
		require.Equal(t, want, billing.all())
		require.Equal(t, []string{"m"}, shipping.all())
		require.Equal(t, store.Stats{}, stats(t, st, "billing"))
	})
}

// Twenty replicas, and copies of the message that the broker delivers beside: the handler is called as
// often as configured, not once more or less, and the message is given up once, as it came.
func TestTwentyReplicasCallTheHandlerExactlyAsOftenAsConfigured(t *testing.T) {
	t.Parallel()
	eachStore(t, func(t *testing.T, st store.Store) {
		b := millracetest.NewBroker(millracetest.Faults{Copies: 4, LostAcks: 3})
		dead := millracetest.NewBroker(millracetest.Faults{})
		chain := quick(t, st, func(c *middleware.Config) { c.Poison.Publisher, c.Poison.Topic = dead, "orders" })
		var got calls
		cfg := quickConfig("billing")
		cfg.Poll = 200 * time.Millisecond // twenty of them
		for range 20 {
			consume(t, b.Subscriber("billing"), st, cfg, func(m *message.Message) error {
				got.add(middleware.Attempt(m.Context()))
				m.Payload = append(m.Payload[:0], "overwritten"...)
				m.Metadata.Set("name", "overwritten")
				return errHandler
			}, chain...)
		}
		require.NoError(t, b.Publish("orders", order("m", "")))
		quiet(t, b, st, "billing")
		testenv.Eventually(t, 2*time.Minute, "it is given up", func() bool { return stats(t, st, "billing").Dead > 0 })
		require.Equal(t, []string{"1", "2", "3", "4", "5"}, got.all())

		letters, err := st.List(t.Context(), store.Filter{Group: "billing"}, 0, 10)
		require.NoError(t, err)
		require.Len(t, letters, 1)
		l, err := st.Get(t.Context(), "billing", letters[0].ID)
		require.NoError(t, err)
		require.Equal(t, "m", l.MessageID)
		require.Equal(t, "payload \x00\xff of m", string(l.Payload))
		require.Equal(t, map[string]string{"name": "value of m"}, l.Metadata)
		require.Equal(t, "failed", l.Reason)
		require.Equal(t, errHandler.Error(), l.Error)
		require.Equal(t, 5, l.Attempts)
		require.Equal(t, "orders", l.Topic)
		require.Len(t, l.History, 5)
		for i, f := range l.History {
			require.Equal(t, i+1, f.Attempt)
			require.Equal(t, errHandler.Error(), f.Error)
		}

		var published calls
		consume(t, dead.Subscriber("dead"), st, quickConfig("dead"), func(m *message.Message) error {
			published.add(m.UUID, " ", string(m.Payload), " ", m.Metadata.Get(middleware.MetaAttempts))
			return nil
		})
		settle(t, dead)
		require.Equal(t, []string{"m payload \x00\xff of m 5"}, published.all())
	})
}

func TestAReplayedMessageComesBackToItsHandlerAlone(t *testing.T) {
	t.Parallel()
	eachStore(t, func(t *testing.T, st store.Store) {
		b := millracetest.NewBroker(millracetest.Faults{})
		var works atomic.Bool
		var billing, shipping calls
		consume(t, b.Subscriber("billing"), st, quickConfig("billing"), func(m *message.Message) error {
			billing.add(m.UUID, " ", middleware.Attempt(m.Context()))
			if works.Load() {
				return nil
			}
			return middleware.Permanent(errHandler)
		}, quick(t, st, nil)...)
		consume(t, b.Subscriber("shipping"), st, quickConfig("shipping"), func(m *message.Message) error {
			shipping.add(m.UUID)
			return nil
		}, quick(t, st, nil)...)
		for _, id := range []string{"a", "b"} {
			require.NoError(t, b.Publish("orders", order(id, "k")))
		}
		settle(t, b)
		require.Equal(t, store.Stats{Dead: 2}, stats(t, st, "billing"))

		works.Store(true)
		r, err := store.Replay(t.Context(), st, store.Order{Filter: store.Filter{Group: "billing"}, Who: "ann", Why: "fixed"})
		require.NoError(t, err)
		require.Equal(t, 2, r.Done)
		quiet(t, b, st, "billing")
		require.ElementsMatch(t, []string{"a 1", "b 1", "a 1", "b 1"}, billing.all())
		require.ElementsMatch(t, []string{"a", "b"}, shipping.all())
		require.Equal(t, store.Stats{}, stats(t, st, "billing"))
	})
}

// A key whose first message fails is closed: later ones wait, also those that come from the broker while
// the first is being handled from the store.
func TestLaterMessagesOfAKeyWait(t *testing.T) {
	t.Parallel()
	eachStore(t, func(t *testing.T, st store.Store) {
		b := millracetest.NewBroker(millracetest.Faults{})
		const keys, each = 4, 12
		var handled calls
		chain := quick(t, st, func(c *middleware.Config) { c.Delayed.Ordered = true; c.Delayed.MaxAttempts = 50 })
		for range 3 {
			consume(t, b.Subscriber("billing"), st, quickConfig("billing"), func(m *message.Message) error {
				n := middleware.Attempt(m.Context())
				if (m.UUID[len(m.UUID)-1]%3 == 0 && n < 4) || n < 2 && m.UUID[len(m.UUID)-1]%2 == 0 {
					return errHandler
				}
				handled.add(m.UUID)
				return nil
			}, chain...)
		}
		for i := range each {
			for k := range keys {
				require.NoError(t, b.Publish("orders", order(fmt.Sprintf("%d-%02d", k, i), fmt.Sprint(k))))
			}
		}
		quiet(t, b, st, "billing")
		got := map[byte][]string{}
		for _, id := range handled.all() {
			got[id[0]] = append(got[id[0]], id)
		}
		require.Len(t, got, keys)
		for k, ids := range got {
			require.Len(t, ids, each)
			require.IsIncreasing(t, ids, "key %c", k)
		}
	})
}

// A handler that is missing, as during a rolling deployment, costs no attempt however often it is missed.
func TestAMissingHandlerDefersWithoutCostingAnAttempt(t *testing.T) {
	t.Parallel()
	eachStore(t, func(t *testing.T, st store.Store) {
		b := millracetest.NewBroker(millracetest.Faults{})
		var missed, handled calls
		var deployed atomic.Bool
		consume(t, b.Subscriber("billing"), st, quickConfig("billing"), func(m *message.Message) error {
			if !deployed.Load() {
				missed.add(middleware.Attempt(m.Context()))
				return middleware.NotYet(errors.New("no handler for this type"), time.Millisecond)
			}
			handled.add(middleware.Attempt(m.Context()))
			return errHandler
		}, quick(t, st, func(c *middleware.Config) { c.Idempotent.MaxClaims = 1000 })...)
		require.NoError(t, b.Publish("orders", order("m", "")))
		testenv.Eventually(t, 2*time.Minute, "it was missed 12 times", func() bool { return missed.count() >= 12 })
		settle(t, b)
		deployed.Store(true)
		testenv.Eventually(t, 2*time.Minute, "it is given up", func() bool { return stats(t, st, "billing").Dead > 0 })
		require.Equal(t, []string{"1", "2", "3", "4", "5"}, handled.all())
		for _, n := range missed.all() {
			require.Equal(t, "1", n)
		}
	})
}

// Nobody ran when its time came, and nothing comes from the broker any more.
func TestAMessageOfAnEarlierLifeComesOnAnIdleQueue(t *testing.T) {
	t.Parallel()
	eachStore(t, func(t *testing.T, st store.Store) {
		b := millracetest.NewBroker(millracetest.Faults{})
		var got calls
		first := consumeFrom(t, b.Subscriber("billing"), "billing", func(*message.Message) error { got.add("first"); return errHandler },
			quick(t, st, nil)...)
		require.NoError(t, b.Publish("orders", order("m", "")))
		settle(t, b)
		first.stop(t)
		require.Equal(t, []string{"first", "first"}, got.all())
		consume(t, b.Subscriber("billing"), st, quickConfig("billing"), func(m *message.Message) error {
			got.add("second ", middleware.Attempt(m.Context()))
			return nil
		}, quick(t, st, nil)...)
		quiet(t, b, st, "billing")
		require.Equal(t, []string{"first", "first", "second 3"}, got.all())
	})
}

func TestAStoredMessageThatCameToAnotherHandlerIsReturnedUntouched(t *testing.T) {
	t.Parallel()
	st := new(store.Memory)
	b := millracetest.NewBroker(millracetest.Faults{})
	require.NoError(t, st.Defer(t.Context(), store.Entry{Group: "billing", MessageID: "m", Attempts: 1}, 0))
	errs := make(chan error, 100)
	watch := func(next message.HandlerFunc) message.HandlerFunc {
		return func(msg *message.Message) ([]*message.Message, error) {
			out, err := next(msg)
			errs <- err
			return out, err
		}
	}
	sub, err := delayed.Subscriber(b.Subscriber("x"), st, quickConfig("billing"))
	require.NoError(t, err)
	r, err := message.NewRouter(message.RouterConfig{}, watermill.NopLogger{})
	require.NoError(t, err)
	r.AddMiddleware(watch)
	r.AddMiddleware(quick(t, st, nil)...)
	r.AddConsumerHandler("shipping", "orders", sub, func(*message.Message) error { t.Error("called"); return nil })
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- r.Run(ctx) }()
	require.ErrorIs(t, <-errs, middleware.ErrWrongHandler)
	cancel()
	require.NoError(t, <-ended)
	taken, _, err := st.Take(t.Context(), store.Take{Group: "billing", Owner: "x", Limit: 1, Lease: time.Minute})
	require.NoError(t, err)
	if len(taken) > 0 { // else it waits for the delay of a nack
		require.Equal(t, 1, taken[0].Attempts)
	}
	require.Equal(t, 1, stats(t, st, "billing").Stored)
}

// A handler that takes longer than the lease is not run a second time, since the lease is renewed.
func TestASlowHandlerKeepsItsMessage(t *testing.T) {
	t.Parallel()
	eachStore(t, func(t *testing.T, st store.Store) {
		b := millracetest.NewBroker(millracetest.Faults{})
		require.NoError(t, st.Defer(t.Context(), store.Entry{Group: "billing", MessageID: "m"}, 0))
		var begun calls
		cfg := quickConfig("billing")
		cfg.Lease, cfg.Timeout = 9*time.Second, 3*time.Second
		release := make(chan struct{})
		for range 2 {
			consume(t, b.Subscriber("billing"), st, cfg, func(m *message.Message) error {
				begun.add(m.UUID)
				<-release
				return nil
			}, quick(t, st, nil)...)
		}
		testenv.Eventually(t, time.Minute, "it has begun", func() bool { return begun.count() > 0 })
		end := time.Now().Add(cfg.Lease + cfg.Lease/3)
		testenv.Eventually(t, time.Minute, "the lease has passed", func() bool { return time.Now().After(end) })
		close(release)
		quiet(t, b, st, "billing")
		require.Equal(t, []string{"m"}, begun.all())
	})
}

// halfRead is a store in which the message "bad" cannot be read.
type halfRead struct{ *store.Memory }

func (h halfRead) Take(ctx context.Context, t store.Take) ([]store.Entry, time.Duration, error) {
	all, next, err := h.Memory.Take(ctx, t)
	return slices.DeleteFunc(all, func(e store.Entry) bool {
		if e.MessageID == "bad" {
			t.Unreadable("bad", errors.New("the stored head cannot be read"))
		}
		return e.MessageID == "bad"
	}), next, err
}

func TestAStoredMessageThatCannotBeReadIsReported(t *testing.T) {
	t.Parallel()
	st := halfRead{new(store.Memory)}
	for _, id := range []string{"bad", "good"} {
		require.NoError(t, st.Defer(t.Context(), store.Entry{Group: "billing", MessageID: id}, 0))
	}
	b := millracetest.NewBroker(millracetest.Faults{})
	var log logged
	cfg := quickConfig("billing")
	cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
	var got calls
	consume(t, b.Subscriber("billing"), st, cfg, func(m *message.Message) error { got.add(m.UUID); return nil }, quick(t, st, nil)...)
	testenv.Eventually(t, time.Minute, "the other is handled", func() bool { return got.count() == 1 })
	testenv.Eventually(t, time.Minute, "it is reported", func() bool {
		return strings.Contains(log.String(), "level=ERROR") && strings.Contains(log.String(), "message_id=bad reason=unreadable")
	})
}

// logged is what was logged.
type logged struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// A store that hangs cannot say that the lease is over: our clock does, before another process may take the message.
func TestAHandlerIsToldBeforeItsLeaseEndsInTheStore(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := hanging{new(store.Memory)}
		require.NoError(t, st.Defer(t.Context(), store.Entry{Group: "billing", MessageID: "m"}, 0))
		b := millracetest.NewBroker(millracetest.Faults{})
		sub, err := delayed.Subscriber(b.Subscriber("billing"), st, delayed.Config{Handler: "billing", Lease: 30 * time.Second})
		require.NoError(t, err)
		begin := time.Now()
		out, err := sub.Subscribe(t.Context(), "orders")
		require.NoError(t, err)
		msg := <-out
		<-msg.Context().Done()
		require.ErrorIs(t, context.Cause(msg.Context()), delayed.ErrLeaseLost)
		require.Equal(t, 27*time.Second, time.Since(begin), "a tenth of the lease before its end")
		msg.Nack()
		require.NoError(t, sub.Close())
	})
}

// hanging is a store that does not answer to Renew.
type hanging struct{ *store.Memory }

func (hanging) Renew(ctx context.Context, _ store.Entry, _ string, _ time.Duration) (bool, error) {
	<-ctx.Done()
	return false, ctx.Err()
}

func TestAStoreThatIsNotSetUpEndsTheSubscriptionWithItsCause(t *testing.T) {
	t.Parallel()
	b := millracetest.NewBroker(millracetest.Faults{})
	sub, err := delayed.Subscriber(b.Subscriber("billing"), unready{new(store.Memory)}, quickConfig("billing"))
	require.NoError(t, err)
	r, err := message.NewRouter(message.RouterConfig{}, watermill.NopLogger{})
	require.NoError(t, err)
	r.AddConsumerHandler("billing", "orders", sub, func(*message.Message) error { return nil })
	err = millrace.RunRouter(t.Context(), r)
	require.ErrorIs(t, err, millrace.ErrSubscriptionEnded)
	require.ErrorIs(t, err, store.ErrSetup)
}

type unready struct{ store.Store }

func (unready) Check(context.Context) error { return fmt.Errorf("x: %w: do this", store.ErrSetup) }

// away is a store that can be taken away.
type away struct {
	store.Store
	gone atomic.Bool
}

var errAway = errors.New("connection refused")

func (a *away) err() error {
	if a.gone.Load() {
		return errAway
	}
	return nil
}

func (a *away) Admit(ctx context.Context, e store.Entry) (store.Admission, error) {
	if err := a.err(); err != nil {
		return 0, err
	}
	return a.Store.Admit(ctx, e)
}

func (a *away) Defer(ctx context.Context, e store.Entry, d time.Duration) error {
	if err := a.err(); err != nil {
		return err
	}
	return a.Store.Defer(ctx, e, d)
}

func (a *away) Take(ctx context.Context, t store.Take) ([]store.Entry, time.Duration, error) {
	if err := a.err(); err != nil {
		return nil, 0, err
	}
	return a.Store.Take(ctx, t)
}

func (a *away) Put(ctx context.Context, l store.Letter) error {
	if err := a.err(); err != nil {
		return err
	}
	return a.Store.Put(ctx, l)
}

func TestWhileTheStoreIsAwayNothingIsLostAndNothingRunsTooOften(t *testing.T) {
	t.Parallel()
	st := &away{Store: new(store.Memory)}
	st.gone.Store(true)
	b := millracetest.NewBroker(millracetest.Faults{NackDelay: time.Millisecond})
	var got calls
	consume(t, b.Subscriber("billing"), st, quickConfig("billing"), func(m *message.Message) error {
		got.add(m.UUID)
		return errHandler
	}, quick(t, st, nil)...)
	for i := range 5 {
		require.NoError(t, b.Publish("orders", order(fmt.Sprint(i), "")))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	require.Error(t, b.Settle(ctx))
	require.Empty(t, got.all(), "without the store nothing runs")
	st.gone.Store(false)
	testenv.Eventually(t, 2*time.Minute, "all are given up", func() bool { return stats(t, st, "billing").Dead == 5 })
	require.Len(t, got.all(), 25)
}

func TestAMessageIsNotAcknowledgedBeforeItIsAmongTheDead(t *testing.T) {
	t.Parallel()
	st := new(store.Memory)
	dead := &away{Store: st}
	dead.gone.Store(true)
	b := millracetest.NewBroker(millracetest.Faults{})
	var got calls
	consume(t, b.Subscriber("billing"), st, quickConfig("billing"), func(*message.Message) error { got.add("x"); return errHandler },
		quick(t, st, func(c *middleware.Config) { c.Poison.Store = dead })...)
	require.NoError(t, b.Publish("orders", order("m", "")))
	testenv.Eventually(t, time.Minute, "all attempts are spent", func() bool { return got.count() == 5 })
	settle(t, b) // the broker's copy was acknowledged when it was stored
	require.Equal(t, 1, stats(t, st, "billing").Stored)
	dead.gone.Store(false)
	quiet(t, b, st, "billing")
	require.Equal(t, 5, got.count(), "no attempt beyond the last")
	letters, err := st.List(t.Context(), store.Filter{Group: "billing"}, 0, 10)
	require.NoError(t, err)
	require.Len(t, letters, 1)
	require.Equal(t, "failed", letters[0].Reason)
	require.Contains(t, letters[0].Error, errHandler.Error())
	require.Equal(t, 5, letters[0].Attempts)
	require.Len(t, letters[0].History, 5)
}

func TestWhatIsInHandIsFinishedBeforeTheEnd(t *testing.T) {
	t.Parallel()
	eachStore(t, func(t *testing.T, st store.Store) {
		b := millracetest.NewBroker(millracetest.Faults{})
		require.NoError(t, st.Defer(t.Context(), store.Entry{Group: "billing", MessageID: "m", Attempts: 1}, 0))
		begun := make(chan struct{}, 1)
		release := make(chan struct{})
		c := consume(t, b.Subscriber("billing"), st, quickConfig("billing"), func(*message.Message) error {
			begun <- struct{}{}
			<-release
			return nil
		}, quick(t, st, nil)...)
		<-begun
		c.cancel()
		close(release) // while the router closes
		c.stop(t)
		require.Equal(t, store.Stats{}, stats(t, st, "billing"), "what is in hand is finished before the end")
	})
}

func TestWrongConfigurationIsReportedAllAtOnce(t *testing.T) {
	t.Parallel()
	_, err := delayed.Subscriber(nil, nil, delayed.Config{Concurrency: -1, Lease: 1, Poll: -1, Timeout: -1})
	for _, part := range []string{"Handler is empty", "Concurrency", "Lease", "Poll", "Timeout", "no subscriber", "no store"} {
		require.ErrorContains(t, err, part)
	}
}
