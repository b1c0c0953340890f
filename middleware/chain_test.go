package middleware_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	wmw "github.com/ThreeDotsLabs/watermill/message/router/middleware"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/dedup"
	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/middleware"
)

// permutations calls f with each order of names.
func permutations(names []string, f func([]string)) {
	var walk func(int)
	walk = func(k int) {
		if k == len(names) {
			f(slices.Clone(names))
			return
		}
		for i := k; i < len(names); i++ {
			names[k], names[i] = names[i], names[k]
			walk(k + 1)
			names[k], names[i] = names[i], names[k]
		}
	}
	walk(0)
}

// In whatever order somebody adds the middlewares: a message whose handler fails is acknowledged only
// when it is stored among the dead, and its replay runs the handler; when the handler then succeeds
// the message is done and a copy does not run.
func TestInEveryOrderOfTheMiddlewaresNothingIsLost(t *testing.T) {
	t.Parallel()
	for _, foreign := range []string{"", "stock retry", "stock ignore errors"} {
		names := []string{"poison", "idempotent", "retry", "timeout", "recoverer"}
		if foreign != "" {
			names = append(names, foreign)
		}
		permutations(names, func(order []string) {
			neverLost(t, strings.Join(order, " > "), order)
		})
	}
}

func neverLost(t *testing.T, name string, order []string) {
	t.Helper()
	dead := &memoryPublisher{}
	store := new(dedup.Memory)
	ms := make([]message.HandlerMiddleware, 0, len(order))
	for _, m := range order {
		switch m {
		case "poison":
			ms = append(ms, must(t)(middleware.PoisonQueue(middleware.PoisonConfig{Publisher: dead, Topic: "dead"})))
		case "idempotent":
			ms = append(ms, must(t)(middleware.Idempotent(store, middleware.IdempotentConfig{Consumer: "c"})))
		case "retry":
			ms = append(ms, must(t)(middleware.Retry(middleware.RetryConfig{MaxAttempts: 2, InitialDelay: 1})))
		case "timeout":
			ms = append(ms, must(t)(middleware.Timeout(time.Minute)))
		case "recoverer":
			ms = append(ms, middleware.Recoverer)
		case "stock retry":
			ms = append(ms, wmw.Retry{MaxRetries: 1, InitialInterval: 1}.Middleware)
		case "stock ignore errors":
			ms = append(ms, wmw.NewIgnoreErrors([]error{errHandler}).Middleware)
		}
	}
	works, calls := false, 0
	h := chain(func(msg *message.Message) ([]*message.Message, error) {
		if calls++; works {
			return nil, nil
		}
		return nil, errHandler
	}, ms...)
	deliver := func() error { _, err := h(delivery(t.Context(), "m", "p")); return err }

	acked := deliver() == nil
	ignored := order[len(order)-1] == "stock ignore errors" ||
		slices.Index(order, "stock ignore errors") > max(slices.Index(order, "poison"), slices.Index(order, "idempotent"), slices.Index(order, "retry"))
	switch {
	case slices.Contains(order, "stock ignore errors") && ignored:
		require.True(t, acked, "%s: it is innermost, so the user wants the error ignored", name)
		return
	case acked:
		require.Len(t, dead.on("dead"), 1, "%s: acknowledged and stored nowhere", name)
	}
	works = true
	before := calls
	require.NoError(t, deliver(), name)
	require.Equal(t, before+1, calls, "%s: the replay did not run", name)
	require.NoError(t, deliver(), name)
	require.Equal(t, before+1, calls, "%s: a copy of a done message ran", name)
}

// A middleware of others that tries again stands between ours: what failed first and succeeded then
// has succeeded.
func TestASuccessAfterAnAttemptThatFailedIsASuccess(t *testing.T) {
	t.Parallel()
	for _, inner := range []string{"idempotent", "retry", "poison kept"} {
		calls := 0
		h := chain(func(*message.Message) ([]*message.Message, error) {
			if calls++; calls == 1 {
				return nil, errHandler
			}
			return nil, nil
		},
			must(t)(middleware.PoisonQueue(middleware.PoisonConfig{Publisher: &memoryPublisher{down: true}, Topic: "dead"})),
			wmw.Retry{MaxRetries: 1, InitialInterval: 1}.Middleware,
			map[string]message.HandlerMiddleware{
				"idempotent":  must(t)(middleware.Idempotent(new(dedup.Memory), middleware.IdempotentConfig{Consumer: "c"})),
				"retry":       must(t)(middleware.Retry(middleware.RetryConfig{MaxAttempts: 1})),
				"poison kept": must(t)(middleware.PoisonQueue(middleware.PoisonConfig{Publisher: &memoryPublisher{down: true}, Topic: "dead"})),
			}[inner])
		_, err := h(delivery(t.Context(), "m", "p"))
		require.NoError(t, err, inner)
		require.Equal(t, 2, calls, inner)
	}
}

// Two handlers of one router read one topic: both have to see every message.
func TestTwoHandlersOfOneTopicBothRun(t *testing.T) {
	t.Parallel()
	ch := gochannel.NewGoChannel(gochannel.Config{}, watermill.NopLogger{})
	defer ch.Close()
	r := newRouter(t)
	ms, err := middleware.Recommended(middleware.Config{Dedup: new(dedup.Memory)})
	require.NoError(t, err)
	r.AddMiddleware(ms...)
	var billing, shipping atomic.Int64
	r.AddConsumerHandler("billing", "orders", ch, func(*message.Message) error { billing.Add(1); return nil })
	r.AddConsumerHandler("shipping", "orders", ch, func(*message.Message) error { shipping.Add(1); return nil })
	runRouter(t, r)

	for i := range 20 {
		for range 2 {
			require.NoError(t, ch.Publish("orders", message.NewMessage(fmt.Sprint("m", i), []byte("p"))))
		}
	}
	testenv.Eventually(t, time.Minute, "both handled every message", func() bool {
		return billing.Load() >= 20 && shipping.Load() >= 20
	})
	require.EqualValues(t, 20, billing.Load())
	require.EqualValues(t, 20, shipping.Load())
}

func TestOneConfiguredNameForTwoHandlersOfATopicIsRefused(t *testing.T) {
	t.Parallel()
	ch := gochannel.NewGoChannel(gochannel.Config{}, watermill.NopLogger{})
	defer ch.Close()
	errs := make(chan error, 100)
	// Seen from outside the middleware.
	outer := func(next message.HandlerFunc) message.HandlerFunc {
		return func(msg *message.Message) ([]*message.Message, error) {
			out, err := next(msg)
			select {
			case errs <- err:
			default:
			}
			return out, nil // ends the redelivery
		}
	}
	r := newRouter(t)
	r.AddMiddleware(outer)
	r.AddMiddleware(must(t)(middleware.Idempotent(new(dedup.Memory), middleware.IdempotentConfig{Consumer: "both"})))
	r.AddConsumerHandler("billing", "orders", ch, func(*message.Message) error { return nil })
	r.AddConsumerHandler("shipping", "orders", ch, func(*message.Message) error { return nil })
	runRouter(t, r)
	require.NoError(t, ch.Publish("orders", message.NewMessage("m", nil)))
	a, b := <-errs, <-errs
	if a == nil {
		a, b = b, a
	}
	require.NoError(t, b)
	require.ErrorIs(t, a, middleware.ErrSharedConsumer)
}

func TestTheMessageHasItsContextBackWhenTheChainReturns(t *testing.T) {
	t.Parallel()
	ms, err := middleware.Recommended(middleware.Config{Dedup: new(dedup.Memory), Idempotent: middleware.IdempotentConfig{Consumer: "c"}})
	require.NoError(t, err)
	var inner context.Context
	h := chain(func(msg *message.Message) ([]*message.Message, error) {
		inner = msg.Context()
		require.Equal(t, 1, middleware.Attempt(inner))
		return nil, nil
	}, ms...)
	msg := delivery(t.Context(), "m", "p")
	_, err = h(msg)
	require.NoError(t, err)
	require.Equal(t, t.Context(), msg.Context())
	require.NoError(t, msg.Context().Err())
	require.Error(t, inner.Err(), "what the handler left running is told to stop")
}

func TestRecommendedReportsEveryContradictionAtOnce(t *testing.T) {
	t.Parallel()
	_, err := middleware.Recommended(middleware.Config{
		Dedup:       new(dedup.Memory),
		Idempotent:  middleware.IdempotentConfig{Lease: 10 * time.Second, DoneTTL: time.Hour, MaxClaims: -1},
		Retry:       middleware.RetryConfig{Budget: time.Minute, InitialDelay: -1},
		Timeout:     20 * time.Second,
		AckDeadline: time.Minute,
		MaxAge:      2 * time.Hour,
		Poison:      middleware.PoisonConfig{Topic: "dead"},
	})
	for _, part := range []string{
		"MaxClaims", "InitialDelay", "no Publisher", "Lease 10s is not longer than Timeout 20s",
		"AckDeadline", "DoneTTL 1h0m0s is not longer than MaxAge 2h0m0s",
	} {
		require.ErrorContains(t, err, part)
	}
	_, err = middleware.Recommended(middleware.Config{})
	require.ErrorContains(t, err, "no dedup store")
}
