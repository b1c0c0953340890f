package middleware_test

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/dedup"
	"github.com/millrace-go/millrace/middleware"
)

func TestTheDeadMessageIsTheOneThatCame(t *testing.T) {
	t.Parallel()
	dead := &memoryPublisher{}
	var log bytes.Buffer
	m := must(t)(middleware.PoisonQueue(middleware.PoisonConfig{Publisher: dead, Topic: "dead",
		Logger: slog.New(slog.NewTextHandler(&log, nil))}))
	h := m(func(msg *message.Message) ([]*message.Message, error) {
		msg.Payload[0] = 'X'
		msg.Payload = nil
		msg.UUID = "changed"
		msg.Metadata["name"] = "changed"
		return nil, middleware.WithReason(errHandler, "unknown_customer")
	})
	msg := delivery(t.Context(), "m", "canary \x00\xff")
	msg.Metadata["name"] = "canary"
	out, err := h(msg)
	require.NoError(t, err)
	require.Empty(t, out)
	require.Len(t, dead.on("dead"), 1)
	got := dead.on("dead")[0]
	require.Equal(t, "m", got.UUID)
	require.Equal(t, "canary \x00\xff", string(got.Payload))
	require.Equal(t, "canary", got.Metadata["name"])
	require.Equal(t, "unknown_customer", got.Metadata[middleware.MetaReason])
	require.Equal(t, errHandler.Error(), got.Metadata[middleware.MetaError])
	_, err = time.Parse(time.RFC3339, got.Metadata[middleware.MetaDeadAt])
	require.NoError(t, err)
	require.NotContains(t, log.String(), "canary")
	require.Contains(t, log.String(), "unknown_customer")
}

func TestADeadMessageIsStoredAfterATimeout(t *testing.T) {
	t.Parallel()
	dead := &memoryPublisher{}
	h := chain(func(msg *message.Message) ([]*message.Message, error) {
		<-msg.Context().Done()
		return nil, msg.Context().Err()
	},
		must(t)(middleware.PoisonQueue(middleware.PoisonConfig{Publisher: dead, Topic: "dead"})),
		must(t)(middleware.Timeout(10*time.Millisecond)))
	_, err := h(delivery(t.Context(), "m", "p"))
	require.NoError(t, err)
	require.Equal(t, []error{nil}, dead.ctxs, "published under a context that had not ended")
	require.Equal(t, "timeout", dead.on("dead")[0].Metadata[middleware.MetaReason])
}

func TestNoMessageIsAcknowledgedThatThePoisonQueueDidNotTake(t *testing.T) {
	t.Parallel()
	dead := &memoryPublisher{down: true}
	h := chain(fail,
		must(t)(middleware.PoisonQueue(middleware.PoisonConfig{Publisher: dead, Topic: "dead"})),
		must(t)(middleware.Idempotent(new(dedup.Memory), middleware.IdempotentConfig{Consumer: "c"})))
	_, err := h(delivery(t.Context(), "m", "p"))
	require.ErrorIs(t, err, errDown)
	require.ErrorIs(t, err, errHandler)
	dead.down = false
	_, err = h(delivery(t.Context(), "m", "p"))
	require.NoError(t, err)
	require.Len(t, dead.on("dead"), 1)
}

func TestWhatIsNotTheMessagesFaultDoesNotPoisonIt(t *testing.T) {
	t.Parallel()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for name, tc := range map[string]struct {
		ctx context.Context
		h   message.HandlerFunc
		mw  message.HandlerMiddleware
	}{
		"a shutdown":              {ctx: ended, h: func(m *message.Message) ([]*message.Message, error) { return nil, m.Context().Err() }},
		"an error while shutting": {ctx: ended, h: fail},
		"a store that is away": {ctx: t.Context(), h: succeed,
			mw: must(t)(middleware.Idempotent(newFlaky("claim"), middleware.IdempotentConfig{Consumer: "c", BusyWait: 1}))},
		"no consumer name": {ctx: t.Context(), h: succeed, mw: must(t)(middleware.Idempotent(new(dedup.Memory), middleware.IdempotentConfig{}))},
		"come again later": {ctx: t.Context(), h: func(*message.Message) ([]*message.Message, error) {
			return nil, middleware.RetryAfter(errHandler, time.Hour)
		},
			mw: must(t)(middleware.Retry(middleware.RetryConfig{}))},
	} {
		dead := &memoryPublisher{}
		ms := []message.HandlerMiddleware{must(t)(middleware.PoisonQueue(middleware.PoisonConfig{Publisher: dead, Topic: "dead"}))}
		if tc.mw != nil {
			ms = append(ms, tc.mw)
		}
		_, err := chain(tc.h, ms...)(delivery(tc.ctx, "m", "p"))
		require.Error(t, err, name)
		require.Empty(t, dead.on("dead"), name)
	}
}

func TestAReplayOfAGivenUpMessageCountsItsClaimsAnew(t *testing.T) {
	t.Parallel()
	dead := &memoryPublisher{}
	works := false
	h := chain(func(*message.Message) ([]*message.Message, error) {
		if works {
			return nil, nil
		}
		return nil, errHandler
	},
		must(t)(middleware.PoisonQueue(middleware.PoisonConfig{Publisher: dead, Topic: "dead", Keep: func(err error) bool {
			return !middleware.IsPermanent(err)
		}})),
		must(t)(middleware.Idempotent(new(dedup.Memory), middleware.IdempotentConfig{Consumer: "c", MaxClaims: 2})))
	for range 2 {
		_, err := h(delivery(t.Context(), "m", "p"))
		require.ErrorIs(t, err, errHandler)
	}
	_, err := h(delivery(t.Context(), "m", "p"))
	require.NoError(t, err)
	require.Equal(t, "too_many_claims", dead.on("dead")[0].Metadata[middleware.MetaReason])
	require.Equal(t, "3", dead.on("dead")[0].Metadata[middleware.MetaAttempts])
	works = true
	_, err = h(delivery(t.Context(), "m", "p"))
	require.NoError(t, err)
	require.Len(t, dead.on("dead"), 1, "the replay ran")
}

func TestAnErrorOfAnyLengthFitsIntoTheMetadata(t *testing.T) {
	t.Parallel()
	dead := &memoryPublisher{}
	h := chain(func(*message.Message) ([]*message.Message, error) { panic(strings.Repeat("\xffé\n", 100_000)) },
		must(t)(middleware.PoisonQueue(middleware.PoisonConfig{Publisher: dead, Topic: "dead"})), middleware.Recoverer)
	_, err := h(delivery(t.Context(), "m", "p"))
	require.NoError(t, err)
	text := dead.on("dead")[0].Metadata[middleware.MetaError]
	require.LessOrEqual(t, len(text), 500)
	require.NotContains(t, text, "\n")
}

func TestAnEntryThatIsNoMessageIsGivenUpWithoutTheHandler(t *testing.T) {
	t.Parallel()
	dead := &memoryPublisher{}
	m := must(t)(middleware.PoisonQueue(middleware.PoisonConfig{Publisher: dead, Topic: "dead"}))
	calls := 0
	h := m(func(*message.Message) ([]*message.Message, error) { calls++; return nil, nil })
	msg := delivery(t.Context(), "m", "raw")
	msg.Metadata["millrace_reason"] = "malformed"
	msg.Metadata["millrace_error"] = "no uuid"
	_, err := h(msg)
	require.NoError(t, err)
	require.Zero(t, calls)
	require.Len(t, dead.on("dead"), 1)
	got := dead.on("dead")[0]
	require.Equal(t, "raw", string(got.Payload))
	require.Equal(t, "malformed", got.Metadata[middleware.MetaReason])
	require.Equal(t, "no uuid", got.Metadata[middleware.MetaError])

	// Read from the poison queue, it is for the handler to look at.
	_, err = h(got)
	require.NoError(t, err)
	require.Equal(t, 1, calls)
}
