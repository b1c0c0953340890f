package middleware_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	wmw "github.com/ThreeDotsLabs/watermill/message/router/middleware"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/dedup"
	"github.com/millrace-go/millrace/internal/redelivery"
	"github.com/millrace-go/millrace/middleware"
	"github.com/millrace-go/millrace/store"
)

// bench plays broker and delayed.Subscriber for one handler.
type bench struct {
	*testing.T
	st        *store.Memory
	h         message.HandlerFunc
	n         int
	nackDelay time.Duration
	// begin, if set, takes the place of the store's.
	begin func(context.Context, store.Entry, string, int) (bool, error)
}

// fromBroker delivers a copy of a message as a broker does, and returns the error of the chain.
func (b *bench) fromBroker(id string) error {
	_, err := b.h(delivery(b.Context(), id, "payload"))
	return err
}

// due hands out what is due and settles it, as delayed.Subscriber does. It returns how many there were.
func (b *bench) due() int {
	b.Helper()
	b.n++
	owner := fmt.Sprint("owner ", b.n)
	taken, _, err := b.st.Take(b.Context(), store.Take{Group: "c", Owner: owner, Limit: 100, Lease: time.Minute})
	require.NoError(b, err)
	begin := b.st.Begin
	if b.begin != nil {
		begin = b.begin
	}
	for _, e := range taken {
		run := redelivery.New("", e, func(ctx context.Context, attempt int) (bool, error) { return begin(ctx, e, owner, attempt) })
		msg := delivery(redelivery.With(b.Context(), run), e.MessageID, string(e.Payload))
		_, err := b.h(msg)
		again, delay := run.Decision()
		switch {
		case err != nil:
			_, err = b.st.Return(b.Context(), run.Entry(), owner, b.nackDelay)
		case again:
			_, err = b.st.Return(b.Context(), run.Entry(), owner, delay)
		default:
			_, err = b.st.Forget(b.Context(), e, owner)
		}
		require.NoError(b, err)
	}
	return len(taken)
}

func (b *bench) stats() store.Stats {
	b.Helper()
	s, err := b.st.Stats(b.Context(), "c")
	require.NoError(b, err)
	return s
}

func newBench(t *testing.T, cfg middleware.DelayedConfig, h message.HandlerFunc, inner ...message.HandlerMiddleware) *bench {
	b := &bench{T: t, st: new(store.Memory)}
	cfg.Group = "c"
	if cfg.Store == nil {
		cfg.Store = b.st
	}
	poison := must(t)(middleware.PoisonQueue(middleware.PoisonConfig{Store: b.st, Group: "c"}))
	b.h = chain(h, append([]message.HandlerMiddleware{poison, must(t)(middleware.DelayedRetry(cfg))}, inner...)...)
	return b
}

// In whatever order somebody adds the middlewares, and with others among them: a message whose handler
// fails is acknowledged only when it is stored, to come again or among the dead; when it comes again and
// the handler succeeds, it is done, and a copy does not run.
func TestInEveryOrderWithDelayedRetryNothingIsLost(t *testing.T) {
	t.Parallel()
	for _, foreign := range []string{"", "stock retry"} {
		names := []string{"poison", "delayed", "idempotent", "retry", "recoverer"}
		if foreign != "" {
			names = append(names, foreign)
		}
		permutations(names, func(order []string) {
			deferredNeverLost(t, strings.Join(order, " > "), order)
		})
	}
}

func deferredNeverLost(t *testing.T, name string, order []string) {
	t.Helper()
	b := &bench{T: t, st: new(store.Memory)}
	records := new(dedup.Memory)
	ms := make([]message.HandlerMiddleware, 0, len(order))
	for _, m := range order {
		switch m {
		case "poison":
			ms = append(ms, must(t)(middleware.PoisonQueue(middleware.PoisonConfig{Store: b.st, Group: "c"})))
		case "delayed":
			ms = append(ms, must(t)(middleware.DelayedRetry(middleware.DelayedConfig{Store: b.st, Group: "c", MaxAttempts: 9, Delays: []time.Duration{0}})))
		case "idempotent":
			ms = append(ms, must(t)(middleware.Idempotent(records, middleware.IdempotentConfig{Consumer: "c", MaxClaims: 100})))
		case "retry":
			ms = append(ms, must(t)(middleware.Retry(middleware.RetryConfig{MaxAttempts: 2, InitialDelay: 1})))
		case "recoverer":
			ms = append(ms, middleware.Recoverer)
		case "stock retry":
			ms = append(ms, wmw.Retry{MaxRetries: 1, InitialInterval: 1}.Middleware)
		}
	}
	works, calls := false, 0
	b.h = chain(func(msg *message.Message) ([]*message.Message, error) {
		msg.Payload = nil
		if calls++; works {
			return nil, nil
		}
		return nil, errHandler
	}, ms...)

	require.NoError(t, b.fromBroker("m"), name)
	st := b.stats()
	require.Equal(t, 1, st.Stored+st.Dead, "%s: acknowledged and stored nowhere, or twice", name)
	for range 3 {
		b.due()
		st := b.stats()
		require.Equal(t, 1, st.Stored+st.Dead, "%s: lost, or there twice", name)
	}
	works = true
	before := calls
	if b.due() == 0 {
		_, err := store.Replay(t.Context(), b.st, store.Order{Filter: store.Filter{Group: "c"}, Who: "ann", Why: "fixed"})
		require.NoError(t, err)
		require.Equal(t, 1, b.due(), name)
	}
	require.Equal(t, before+1, calls, "%s: it did not run", name)
	require.Equal(t, store.Stats{}, b.stats(), name)
	require.NoError(t, b.fromBroker("m"), name)
	require.Equal(t, before+1, calls, "%s: a copy of a done message ran", name)
}

func TestTheTableOfDelaysIsKept(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var at []time.Duration
		begin := time.Now()
		b := newBench(t, middleware.DelayedConfig{MaxAttempts: 6, Delays: []time.Duration{time.Second, time.Minute, time.Hour}},
			func(*message.Message) ([]*message.Message, error) {
				at = append(at, time.Since(begin).Round(time.Second))
				return nil, errHandler
			})
		require.NoError(t, b.fromBroker("m"))
		for b.stats().Stored > 0 {
			time.Sleep(time.Second)
			b.due()
		}
		require.Equal(t, []time.Duration{0, time.Second, 61 * time.Second, time.Hour + 61*time.Second, 2*time.Hour + 61*time.Second, 3*time.Hour + 61*time.Second}, at)
		require.Equal(t, 1, b.stats().Dead)
	})
}

func TestDelaysGrowToACapWithFullJitter(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var got []time.Duration
		b := newBench(t, middleware.DelayedConfig{MaxAttempts: 8, InitialDelay: time.Minute, MaxDelay: 4 * time.Minute,
			OnDeferred: func(_ *message.Message, attempt int, err error, delay time.Duration) {
				require.ErrorIs(t, err, errHandler)
				require.Equal(t, len(got)+1, attempt)
				got = append(got, delay)
			}}, fail)
		for i := range 20 {
			got = nil
			require.NoError(t, b.fromBroker(fmt.Sprint(i)))
			for b.stats().Stored > 0 {
				time.Sleep(10 * time.Second)
				b.due()
			}
			require.Len(t, got, 7)
			for n, most := range []time.Duration{1, 2, 4, 4, 4, 4, 4} {
				require.Positive(t, got[n])
				require.LessOrEqual(t, got[n], most*time.Minute)
			}
		}
	})
}

func TestRetryAfterIsHonoured(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var at []time.Duration
		begin := time.Now()
		b := newBench(t, middleware.DelayedConfig{MaxAttempts: 3, Delays: []time.Duration{time.Second}},
			func(*message.Message) ([]*message.Message, error) {
				at = append(at, time.Since(begin).Round(time.Minute))
				return nil, middleware.RetryAfter(errHandler, 10*time.Minute)
			}, must(t)(middleware.Retry(middleware.RetryConfig{}))) // for whose budget it is too long
		require.NoError(t, b.fromBroker("m"))
		for b.stats().Stored > 0 {
			time.Sleep(time.Second)
			b.due()
		}
		require.Equal(t, []time.Duration{0, 10 * time.Minute, 20 * time.Minute}, at)
	})
}

func TestMaxAttemptsIsTheTotalOverRetryAndDelayedRetry(t *testing.T) {
	t.Parallel()
	for perDelivery := 1; perDelivery <= 7; perDelivery++ {
		for total := 1; total <= 9; total++ {
			var got []int
			b := newBench(t, middleware.DelayedConfig{MaxAttempts: total, Delays: []time.Duration{0}},
				func(msg *message.Message) ([]*message.Message, error) {
					got = append(got, middleware.Attempt(msg.Context()))
					return nil, errHandler
				},
				must(t)(middleware.Idempotent(new(dedup.Memory), middleware.IdempotentConfig{Consumer: "c", MaxClaims: 100})),
				must(t)(middleware.Retry(middleware.RetryConfig{MaxAttempts: perDelivery, InitialDelay: 1})))
			require.NoError(t, b.fromBroker("m"))
			for b.stats().Stored > 0 {
				require.Equal(t, 1, b.due())
			}
			require.Len(t, got, total, "%d in each delivery", perDelivery)
			for i, n := range got {
				require.Equal(t, i+1, n)
			}
			letters, err := b.st.List(t.Context(), store.Filter{Group: "c"}, 0, 10)
			require.NoError(t, err)
			require.Len(t, letters, 1)
			require.Equal(t, total, letters[0].Attempts)
			require.Len(t, letters[0].History, total)
		}
	}
}

func TestAPermanentErrorIsNotDeferred(t *testing.T) {
	t.Parallel()
	for name, inner := range map[string]message.HandlerMiddleware{
		"by the handler": must(t)(middleware.Classify(middleware.Rule{Match: middleware.Is(errHandler), Permanent: true, Reason: "bad"})),
		"by GiveUp": must(t)(middleware.Retry(middleware.RetryConfig{GiveUp: func(err error) bool { return errors.Is(err, errHandler) },
			OnRetry: func(*message.Message, int, error, time.Duration) { t.Error("tried again") }})),
	} {
		calls := 0
		b := newBench(t, middleware.DelayedConfig{Delays: []time.Duration{0}}, func(*message.Message) ([]*message.Message, error) {
			calls++
			return nil, errHandler
		}, inner)
		require.NoError(t, b.fromBroker("m"), name)
		require.Equal(t, store.Stats{Dead: 1}, b.stats(), name)
		require.Equal(t, 1, calls, name)
	}
}

func TestACopyOfAStoredMessageIsAcknowledgedWithoutRunning(t *testing.T) {
	t.Parallel()
	calls := 0
	b := newBench(t, middleware.DelayedConfig{MaxAttempts: 2, Delays: []time.Duration{time.Hour}}, func(*message.Message) ([]*message.Message, error) {
		calls++
		return nil, errHandler
	})
	for range 3 {
		require.NoError(t, b.fromBroker("m"))
	}
	require.Equal(t, 1, calls)
	require.Equal(t, 1, b.stats().Stored)
}

func TestACopyOfADeadMessageIsAcknowledgedWithoutRunning(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	calls := 0
	b := newBench(t, middleware.DelayedConfig{MaxAttempts: 1, Logger: slog.New(slog.NewTextHandler(&log, nil))},
		func(*message.Message) ([]*message.Message, error) { calls++; return nil, errHandler })
	for range 3 {
		require.NoError(t, b.fromBroker("m"))
	}
	require.Equal(t, 1, calls)
	require.Equal(t, store.Stats{Dead: 1}, b.stats())
	require.Contains(t, log.String(), "replay or discard")
	require.NotContains(t, log.String(), "payload")
}

// The process died in the last attempt, or after it: whether the message is done only the record of the
// handler's effect knows.
func TestAMessageWhoseLastAttemptNeverEndedIsGivenUpUnlessItIsDone(t *testing.T) {
	t.Parallel()
	for _, done := range []bool{false, true} {
		records := new(dedup.Memory)
		if done {
			_, err := records.Done(t.Context(), dedup.Key{Consumer: "c", MessageID: "m"}, "killed", nil, time.Hour)
			require.NoError(t, err)
		}
		calls := 0
		b := newBench(t, middleware.DelayedConfig{MaxAttempts: 3}, func(*message.Message) ([]*message.Message, error) { calls++; return nil, nil },
			must(t)(middleware.Idempotent(records, middleware.IdempotentConfig{Consumer: "c"})),
			must(t)(middleware.Retry(middleware.RetryConfig{})), middleware.Recoverer)
		require.NoError(t, b.st.Defer(t.Context(), store.Entry{Group: "c", MessageID: "m", Attempts: 3}, 0))
		require.Equal(t, 1, b.due())
		require.Zero(t, calls)
		letters, err := b.st.List(t.Context(), store.Filter{Group: "c"}, 0, 10)
		require.NoError(t, err)
		if done {
			require.Equal(t, store.Stats{}, b.stats())
			continue
		}
		require.Len(t, letters, 1)
		require.Equal(t, "attempts_spent", letters[0].Reason)
		require.Equal(t, 3, letters[0].Attempts)
	}
}

// Without Recoverer nobody keeps the handler from being called, but not for ever.
func TestAMessageThatKillsItsProcessInEachAttemptIsGivenUp(t *testing.T) {
	t.Parallel()
	b := newBench(t, middleware.DelayedConfig{MaxAttempts: 3}, succeed)
	require.NoError(t, b.st.Defer(t.Context(), store.Entry{Group: "c", MessageID: "m", Attempts: 6}, 0))
	require.Equal(t, 1, b.due())
	require.Equal(t, store.Stats{Dead: 1}, b.stats())
}

// While the retry store cannot take the message, the broker keeps it.
func TestAMessageThatCannotBeStoredIsNacked(t *testing.T) {
	t.Parallel()
	st := &downStore{}
	calls := 0
	b := newBench(t, middleware.DelayedConfig{Store: st}, func(*message.Message) ([]*message.Message, error) { calls++; return nil, errHandler })
	err := b.fromBroker("m")
	require.ErrorIs(t, err, middleware.ErrRetryStoreUnavailable)
	require.ErrorIs(t, err, errHandler)
	require.Equal(t, store.Stats{}, b.stats(), "not given up either")
	st.admitting = true
	require.ErrorIs(t, b.fromBroker("m"), middleware.ErrRetryStoreUnavailable)
	require.Equal(t, 1, calls, "if it cannot be asked, nothing runs")
}

// An attempt that failed counts, also if the store does not answer when the next one is to begin.
func TestAnAttemptThatFailedCountsThoughTheNextCannotBegin(t *testing.T) {
	t.Parallel()
	st := &failingBegin{}
	var got []int
	b := newBench(t, middleware.DelayedConfig{Store: st, MaxAttempts: 6, Delays: []time.Duration{0}}, func(msg *message.Message) ([]*message.Message, error) {
		got = append(got, middleware.Attempt(msg.Context()))
		return nil, errHandler
	}, must(t)(middleware.Retry(middleware.RetryConfig{MaxAttempts: 2, InitialDelay: 1})))
	st.Memory, b.begin = b.st, st.Begin
	require.NoError(t, b.fromBroker("m"))
	for b.stats().Stored > 0 {
		b.due()
	}
	require.Equal(t, []int{1, 2, 3, 4, 5, 6}, got)
}

// failingBegin answers nothing at each second attempt of a run.
type failingBegin struct {
	*store.Memory
	n int
}

func (s *failingBegin) Begin(ctx context.Context, e store.Entry, owner string, attempt int) (bool, error) {
	if s.n++; s.n%2 == 0 {
		return false, errDown
	}
	return s.Memory.Begin(ctx, e, owner, attempt)
}

// downStore fails to store, and when admitting is set, to answer at all.
type downStore struct {
	store.Memory
	admitting bool
}

func (s *downStore) Admit(ctx context.Context, e store.Entry) (store.Admission, error) {
	if s.admitting {
		return 0, errDown
	}
	return s.Memory.Admit(ctx, e)
}

func (s *downStore) Defer(context.Context, store.Entry, time.Duration) error { return errDown }

func TestWhatIsNoAttemptIsNotCounted(t *testing.T) {
	t.Parallel()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for name, tc := range map[string]struct {
		ctx context.Context
		h   message.HandlerFunc
		mw  message.HandlerMiddleware
	}{
		"a shutdown": {ctx: ended, h: func(m *message.Message) ([]*message.Message, error) { return nil, m.Context().Err() }},
		"another delivery in progress": {ctx: t.Context(), h: succeed,
			mw: func(message.HandlerFunc) message.HandlerFunc {
				return must(t)(middleware.Idempotent(claimedElsewhere(t), middleware.IdempotentConfig{Consumer: "c", BusyWait: 1}))(succeed)
			}},
		"a store that is away": {ctx: t.Context(), h: succeed,
			mw: must(t)(middleware.Idempotent(newFlaky("claim"), middleware.IdempotentConfig{Consumer: "c", BusyWait: 1}))},
		"not yet": {ctx: t.Context(), h: func(*message.Message) ([]*message.Message, error) { return nil, middleware.NotYet(errHandler, 0) }},
	} {
		var inner []message.HandlerMiddleware
		if tc.mw != nil {
			inner = append(inner, tc.mw)
		}
		b := newBench(t, middleware.DelayedConfig{MaxAttempts: 2, Delays: []time.Duration{0}}, tc.h, inner...)
		h := b.h
		b.h = func(msg *message.Message) ([]*message.Message, error) {
			if tc.ctx == ended {
				ctx, cancel := context.WithCancel(msg.Context())
				cancel()
				msg.SetContext(ctx)
			}
			return h(msg)
		}
		require.NoError(t, b.st.Defer(t.Context(), store.Entry{Group: "c", MessageID: "m", Attempts: 1}, 0))
		require.Equal(t, 1, b.due(), name)
		require.Equal(t, store.Stats{Stored: 1, Due: 1}, b.stats(), name)
		require.NoError(t, b.st.Defer(t.Context(), store.Entry{Group: "c", MessageID: "m", Attempts: 0}, 0))
		e := peek(t, b.st)
		require.Equal(t, 1, e.Attempts, name)
	}
}

// A replayed message lives anew: its attempts are counted from one, noted, and taken back, as if there had been
// none before.
func TestAReplayedMessageHasAHistoryOfItsOwn(t *testing.T) {
	t.Parallel()
	var end error
	b := newBench(t, middleware.DelayedConfig{MaxAttempts: 3, Delays: []time.Duration{0}},
		func(*message.Message) ([]*message.Message, error) { return nil, end },
		must(t)(middleware.Retry(middleware.RetryConfig{MaxAttempts: 1})))
	end = errHandler
	require.NoError(t, b.fromBroker("m"))
	for b.stats().Stored > 0 {
		b.due()
	}
	order := store.Order{Filter: store.Filter{Group: "c"}, Who: "ann", Why: "fixed"}
	_, err := store.Replay(t.Context(), b.st, order)
	require.NoError(t, err)

	end = middleware.NotYet(errors.New("not deployed"), time.Nanosecond)
	for range 5 {
		require.Equal(t, 1, b.due())
	}
	end = errors.New("another failure")
	for b.stats().Stored > 0 {
		b.due()
	}
	letters, err := b.st.List(t.Context(), store.Filter{Group: "c"}, 0, 10)
	require.NoError(t, err)
	require.Len(t, letters, 1)
	require.Equal(t, 3, letters[0].Attempts)
	require.Len(t, letters[0].History, 3)
	for i, f := range letters[0].History {
		require.Equal(t, i+1, f.Attempt)
		require.Equal(t, "another failure", f.Error)
	}
}

// peek looks at the one stored message, however long it is to wait.
func peek(t *testing.T, st *store.Memory) (e store.Entry) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for time.Now().Before(deadline) {
		taken, next, err := st.Take(t.Context(), store.Take{Group: "c", Owner: "peek", Limit: 1, Lease: time.Minute})
		require.NoError(t, err)
		if len(taken) > 0 {
			return taken[0]
		}
		timer := time.NewTimer(max(next, time.Millisecond))
		<-timer.C
	}
	t.Fatal("nothing is stored")
	return e
}

func claimedElsewhere(t *testing.T) dedup.Store {
	s := new(dedup.Memory)
	_, err := s.Claim(t.Context(), dedup.Key{Consumer: "c", MessageID: "m"}, dedup.Request{Owner: "other", Lease: time.Minute, TTL: time.Hour})
	require.NoError(t, err)
	return s
}

func TestTwoHandlersOfATopicMayNotShareAGroup(t *testing.T) {
	t.Parallel()
	// Without a router there are no handler names, and the group is what the messages go by.
	b := newBench(t, middleware.DelayedConfig{}, succeed)
	require.NoError(t, b.fromBroker("m"))
	_, err := must(t)(middleware.DelayedRetry(middleware.DelayedConfig{Store: b.st}))(succeed)(delivery(t.Context(), "m", "p"))
	require.ErrorIs(t, err, middleware.ErrNoConsumer)
	_, err = must(t)(middleware.DelayedRetry(middleware.DelayedConfig{Store: b.st, Group: "c"}))(succeed)(delivery(t.Context(), "", "p"))
	require.ErrorIs(t, err, middleware.ErrNoMessageID)
}

func TestWrongDelayedConfigurationIsReportedAllAtOnce(t *testing.T) {
	t.Parallel()
	_, err := middleware.DelayedRetry(middleware.DelayedConfig{MaxAttempts: -1, Delays: []time.Duration{-1}, InitialDelay: -1,
		MaxDelay: -2, Group: strings.Repeat("g", 300)})
	for _, part := range []string{"no Store", "MaxAttempts", "Delays[0]", "InitialDelay", "MaxDelay", "Group"} {
		require.ErrorContains(t, err, part)
	}
}

func TestRulesMarkTheErrorsOfTheirHandlers(t *testing.T) {
	t.Parallel()
	type odd struct{ error }
	classify := must(t)(middleware.Classify(
		middleware.Rule{Handler: "other", Permanent: true, Reason: "never"},
		middleware.Rule{Match: middleware.Is(context.DeadlineExceeded), After: time.Minute},
		middleware.Rule{Match: middleware.As[*middleware.PanicError](), Permanent: true},
		middleware.Rule{Match: middleware.As[odd](), NotYet: true, After: time.Second},
		middleware.Rule{Match: middleware.Is(errHandler), Reason: "known"},
	))
	mark := func(err error) error {
		_, err = classify(func(*message.Message) ([]*message.Message, error) { return nil, err })(delivery(t.Context(), "m", "p"))
		return err
	}
	require.NoError(t, mark(nil))
	require.Equal(t, time.Minute, middleware.Delay(mark(fmt.Errorf("x: %w", context.DeadlineExceeded))))
	require.True(t, middleware.IsPermanent(mark(&middleware.PanicError{Value: 1})))
	require.Equal(t, "known", middleware.Reason(mark(errHandler)))
	require.False(t, middleware.IsPermanent(mark(errHandler)))
	require.Equal(t, time.Second, middleware.Delay(mark(odd{errHandler})), "the first rule counts")
	require.Equal(t, "failed", middleware.Reason(mark(errors.New("unknown"))))

	_, err := middleware.Classify(middleware.Rule{After: -1}, middleware.Rule{Permanent: true, NotYet: true})
	require.ErrorContains(t, err, "rule 0")
	require.ErrorContains(t, err, "rule 1")
}

func TestRetryDoesNotWaitBeyondTheDeadlineOfTheMessage(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		calls := 0
		h := must(t)(middleware.Retry(middleware.RetryConfig{MaxAttempts: 100, Budget: time.Hour}))(func(*message.Message) ([]*message.Message, error) {
			calls++
			return nil, middleware.RetryAfter(errHandler, 25*time.Second)
		})
		_, err := h(delivery(ctx, "m", "p"))
		require.ErrorIs(t, err, errHandler)
		require.Equal(t, 3, calls)
		require.NoError(t, ctx.Err(), "it came back before the broker takes the message away")
	})
}

func TestTheDeadGoToTheStoreAndTheTopic(t *testing.T) {
	t.Parallel()
	st, topic := new(store.Memory), &memoryPublisher{down: true}
	h := must(t)(middleware.PoisonQueue(middleware.PoisonConfig{Store: st, Group: "c", Publisher: topic, Topic: "dead"}))(fail)
	_, err := h(delivery(t.Context(), "m", "p"))
	require.ErrorIs(t, err, errDown, "not acknowledged before it is in both")
	topic.down = false
	for range 2 {
		_, err = h(delivery(t.Context(), "m", "p"))
		require.NoError(t, err)
	}
	letters, err := st.List(t.Context(), store.Filter{Group: "c"}, 0, 10)
	require.NoError(t, err)
	require.Len(t, letters, 1)
	require.Len(t, topic.on("dead"), 2)
	require.Contains(t, topic.on("dead")[0].Metadata[middleware.MetaHistory], errHandler.Error())

	_, err = middleware.PoisonQueue(middleware.PoisonConfig{Store: st, Topic: "dead"})
	require.ErrorContains(t, err, "no Publisher")
	_, err = middleware.PoisonQueue(middleware.PoisonConfig{})
	require.ErrorContains(t, err, "no Publisher")
	require.ErrorContains(t, err, "Topic is empty")
}

// When it is replayed it gets into the line in which DelayedRetry keeps the messages of its key.
func TestADeadLetterHasTheOrderKeyOfDelayedRetry(t *testing.T) {
	t.Parallel()
	st := new(store.Memory)
	delayed := func(cfg middleware.DelayedConfig) message.HandlerMiddleware {
		cfg.Store, cfg.Group, cfg.MaxAttempts = st, "c", 1
		return must(t)(middleware.DelayedRetry(cfg))
	}
	for id, tc := range map[string]struct {
		inner message.HandlerMiddleware
		want  string
	}{
		"without DelayedRetry": {inner: middleware.Recoverer, want: "k"},
		"without order":        {inner: delayed(middleware.DelayedConfig{}), want: ""},
		"ordered":              {inner: delayed(middleware.DelayedConfig{Ordered: true}), want: "k"},
		"ordered by another key": {inner: delayed(middleware.DelayedConfig{Ordered: true,
			Key: func(msg *message.Message) string { return msg.Metadata.Get("customer") }}), want: "ann"},
	} {
		msg := delivery(t.Context(), id, "p")
		msg.Metadata.Set("millrace_key", "k")
		msg.Metadata.Set("customer", "ann")
		_, err := chain(fail, must(t)(middleware.PoisonQueue(middleware.PoisonConfig{Store: st, Group: "c"})), tc.inner)(msg)
		require.NoError(t, err, id)
		letters, err := st.List(t.Context(), store.Filter{Group: "c", MessageID: id}, 0, 10)
		require.NoError(t, err)
		require.Len(t, letters, 1, id)
		require.Equal(t, tc.want, letters[0].OrderKey, id)
	}
}

func TestEntriesThatAreNoMessagesAreKeptApart(t *testing.T) {
	t.Parallel()
	st := new(store.Memory)
	h := must(t)(middleware.PoisonQueue(middleware.PoisonConfig{Store: st, Group: "c"}))(succeed)
	for _, payload := range []string{"a", "b"} {
		msg := delivery(t.Context(), "", payload)
		msg.Metadata["millrace_reason"] = "malformed"
		_, err := h(msg)
		require.NoError(t, err)
	}
	letters, err := st.List(t.Context(), store.Filter{Group: "c"}, 0, 10)
	require.NoError(t, err)
	require.Len(t, letters, 2)
	require.Equal(t, "malformed", letters[0].Reason)
}

func TestRecommendedChecksTheNumbersOfDelayedRetry(t *testing.T) {
	t.Parallel()
	st := new(store.Memory)
	_, err := middleware.Recommended(middleware.Config{
		Dedup:       new(dedup.Memory),
		Idempotent:  middleware.IdempotentConfig{MaxClaims: 3, DoneTTL: time.Hour},
		Retry:       middleware.RetryConfig{MaxAttempts: 5},
		Delayed:     middleware.DelayedConfig{Store: st, Group: "c", MaxAttempts: 5, MaxDelay: 2 * time.Hour, Timeout: 20 * time.Minute},
		Poison:      middleware.PoisonConfig{Store: st, Group: "other"},
		Rules:       []middleware.Rule{{After: -1}},
		AckDeadline: 30 * time.Minute,
	})
	for _, part := range []string{
		"Delayed.MaxAttempts 5, the total, is not more than Retry.MaxAttempts 5",
		"DoneTTL 1h0m0s is not longer than the longest delay 2h0m0s", `Poison.Group "other" is not Delayed.Group "c"`,
		"AckDeadline", "rule 0",
	} {
		require.ErrorContains(t, err, part)
	}
	_, err = middleware.Recommended(middleware.Config{Dedup: new(dedup.Memory), Delayed: middleware.DelayedConfig{Store: st}})
	require.ErrorContains(t, err, "Delayed without Poison")
	ms, err := middleware.Recommended(middleware.Config{Dedup: new(dedup.Memory), Delayed: middleware.DelayedConfig{Store: st},
		Poison: middleware.PoisonConfig{Store: st}, Rules: []middleware.Rule{{NotYet: true}}})
	require.NoError(t, err)
	require.Len(t, ms, 7)
	require.False(t, slices.ContainsFunc(ms, func(m message.HandlerMiddleware) bool { return m == nil }))
}

// A message that is put aside for later has not been given up by a process that died: it costs no claim.
func TestAMessageThatIsDeferredCostsNoClaim(t *testing.T) {
	t.Parallel()
	once := must(t)(middleware.Idempotent(new(dedup.Memory), middleware.IdempotentConfig{Consumer: "c", MaxClaims: 3}))
	runs := 0
	for range 10 {
		h := chain(func(*message.Message) ([]*message.Message, error) {
			runs++
			return nil, middleware.NotYet(errHandler, time.Millisecond)
		}, must(t)(middleware.DelayedRetry(middleware.DelayedConfig{Store: new(store.Memory), Group: "c"})), once)
		_, err := h(delivery(t.Context(), "m", "payload"))
		require.NoError(t, err)
	}
	require.Equal(t, 10, runs)
}
