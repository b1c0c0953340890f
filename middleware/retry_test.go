package middleware_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/middleware"
)

func TestRetryCallsTheHandlerMaxAttemptsTimes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var attempts []int
		var waits []time.Duration
		cfg := middleware.RetryConfig{MaxAttempts: 6, InitialDelay: time.Second, MaxDelay: 4 * time.Second, Budget: time.Hour,
			OnRetry: func(_ *message.Message, attempt int, err error, wait time.Duration) {
				require.ErrorIs(t, err, errHandler)
				require.Len(t, attempts, attempt)
				waits = append(waits, wait)
			}}
		h := must(t)(middleware.Retry(cfg))(func(msg *message.Message) ([]*message.Message, error) {
			attempts = append(attempts, middleware.Attempt(msg.Context()))
			return nil, errHandler
		})
		begin := time.Now()
		_, err := h(delivery(t.Context(), "m", "p"))
		require.ErrorIs(t, err, errHandler)
		require.Equal(t, []int{1, 2, 3, 4, 5, 6}, attempts)
		require.Len(t, waits, 5)
		var sum time.Duration
		for i, most := range []time.Duration{1, 2, 4, 4, 4} {
			require.LessOrEqual(t, waits[i], most*time.Second)
			require.Positive(t, waits[i])
			sum += waits[i]
		}
		require.Equal(t, sum, time.Since(begin), "the hook is told the waits that are made")
	})
}

func TestRetryStopsWhereAnotherAttemptIsOfNoUse(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for name, tc := range map[string]struct {
			cfg  middleware.RetryConfig
			err  error
			want int
		}{
			"a permanent error": {err: middleware.Permanent(errHandler), want: 1},
			"a configured error": {cfg: middleware.RetryConfig{GiveUp: func(err error) bool { return errors.Is(err, errHandler) }},
				err: errHandler, want: 1},
			"the budget is spent":         {cfg: middleware.RetryConfig{MaxAttempts: 100, Budget: time.Second}, err: middleware.RetryAfter(errHandler, 300*time.Millisecond), want: 4},
			"the wait exceeds the budget": {err: middleware.RetryAfter(errHandler, time.Hour), want: 1},
			"an ordinary error":           {err: errHandler, want: 3},
		} {
			calls := 0
			h := must(t)(middleware.Retry(tc.cfg))(func(*message.Message) ([]*message.Message, error) { calls++; return nil, tc.err })
			_, err := h(delivery(t.Context(), "m", "p"))
			require.ErrorIs(t, err, errHandler, name)
			require.Equal(t, tc.want, calls, name)
		}
	})
}

func TestRetryStopsWaitingWhenTheMessageIsCancelled(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		calls := 0
		h := must(t)(middleware.Retry(middleware.RetryConfig{}))(func(*message.Message) ([]*message.Message, error) {
			calls++
			return nil, middleware.RetryAfter(errHandler, 10*time.Second)
		})
		time.AfterFunc(time.Second, cancel)
		begin := time.Now()
		_, err := h(delivery(ctx, "m", "p"))
		require.ErrorIs(t, err, errHandler)
		require.Equal(t, time.Second, time.Since(begin))
		require.Equal(t, 1, calls)
	})
}

func TestTimeoutEndsTheContextAndRestoresIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := must(t)(middleware.Timeout(time.Second))(func(msg *message.Message) ([]*message.Message, error) {
			<-msg.Context().Done()
			return nil, msg.Context().Err()
		})
		msg := delivery(t.Context(), "m", "p")
		_, err := h(msg)
		require.ErrorIs(t, err, middleware.ErrTimeout)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, "timeout", middleware.Reason(err))
		require.NoError(t, msg.Context().Err())
	})
	_, err := middleware.Timeout(0)
	require.Error(t, err)
}

func TestRecovererMakesABoundedErrorOfAPanic(t *testing.T) {
	t.Parallel()
	for _, v := range []any{"boom\nsecond line", errHandler, strings.Repeat("é", 5000), "\xff\xfe", nil} {
		h := middleware.Recoverer(func(*message.Message) ([]*message.Message, error) { panic(v) })
		_, err := h(delivery(t.Context(), "m", "p"))
		var p *middleware.PanicError
		require.ErrorAs(t, err, &p)
		require.NotEmpty(t, p.Stack)
		require.LessOrEqual(t, len(err.Error()), 210)
		require.NotContains(t, err.Error(), "\n")
		require.True(t, utf8.ValidString(err.Error()))
		require.Equal(t, "panic", middleware.Reason(err))
	}
	h := middleware.Recoverer(func(*message.Message) ([]*message.Message, error) { panic(errHandler) })
	_, err := h(delivery(t.Context(), "m", "p"))
	require.ErrorIs(t, err, errHandler)
}

func TestMarksOnErrorsAreFoundWhereverTheyAre(t *testing.T) {
	t.Parallel()
	require.NoError(t, middleware.Permanent(nil))
	require.NoError(t, middleware.RetryAfter(nil, time.Second))
	require.NoError(t, middleware.WithReason(nil, "x"))
	err := errors.Join(errors.New("other"), middleware.WithReason(middleware.RetryAfter(middleware.Permanent(errHandler), time.Minute), "code"))
	require.True(t, middleware.IsPermanent(err))
	require.Equal(t, time.Minute, middleware.Delay(err))
	require.Equal(t, "code", middleware.Reason(err))
	require.ErrorIs(t, err, errHandler)
	require.Equal(t, "failed", middleware.Reason(errHandler))
	require.Equal(t, "permanent", middleware.Reason(middleware.Permanent(errHandler)))
	require.Equal(t, errHandler.Error(), middleware.Permanent(errHandler).Error())
}
