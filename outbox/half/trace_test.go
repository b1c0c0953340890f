package half_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/outbox"
	"github.com/millrace-go/millrace/outbox/half"
)

type traceKey struct{}

func in(ctx context.Context, trace string) context.Context {
	return context.WithValue(ctx, traceKey{}, trace)
}

// traced is a scene whose outbox carries traces, as the propagator of W3C does: it overwrites.
func traced(t *testing.T) *scene {
	t.Helper()
	s := newScene(t, [2]database{sqlite, sqlite})
	box, err := outbox.New(s.out, outbox.Config{Propagators: []outbox.Propagator{
		outbox.PropagatorFunc(func(ctx context.Context, m message.Metadata) {
			if trace, ok := ctx.Value(traceKey{}).(string); ok {
				m["traceparent"] = trace
			}
		}),
	}})
	require.NoError(t, err)
	s.box = box
	return s
}

// carried is the metadata with which a message waits in the outbox.
func (s *scene) carried(id string) message.Metadata {
	s.Helper()
	trace, err := s.box.Find(s.Context(), id)
	require.NoError(s, err)
	require.Len(s, trace.Records, 1)
	return trace.Records[0].Metadata
}

func TestAHalfMessageBelongsToTheTraceInWhichItWasPrepared(t *testing.T) {
	t.Parallel()
	s := traced(t)
	m := s.messages(half.Config{
		Witnesses: map[string]millrace.DB{"orders": s.biz},
		Checkers: map[string]half.Checker{"checked": func(context.Context, half.Info) (half.Verdict, error) {
			return half.WasCommitted, nil
		}},
	})
	want := message.Metadata{"traceparent": "of prepare", "colour": "red", "millrace_key": "key of 1"}

	given := msg("1")
	require.NoError(t, m.Prepare(in(t.Context(), "of prepare"), "checked", given))
	require.NotContains(t, given.Metadata, "traceparent", "the message that was given stays as it was")
	require.NoError(t, m.Prepare(in(t.Context(), "of a second try"), "checked", given), "it is the same message")
	require.NoError(t, m.Commit(in(t.Context(), "of commit"), "1"))
	require.Equal(t, want, s.carried("1"))

	err := half.InTx(in(t.Context(), "of prepare"), m, s.biz, "orders", msg("2"), func(ctx context.Context, tx *millrace.Tx) error {
		return order(ctx, tx, "2")
	})
	require.NoError(t, err)
	require.Equal(t, "of prepare", s.carried("2")["traceparent"])

	// The answer is lost, and the check-back lets it go.
	require.Error(t, m.Do(in(t.Context(), "of prepare"), "checked", msg("3"), func(context.Context) error { return errors.New("lost") }))
	stop := s.run(m)
	s.awaits(m, "3", half.Committed)
	stop()
	require.Equal(t, "of prepare", s.carried("3")["traceparent"])

	// One that was prepared outside of any trace is not put into that of whoever commits it.
	require.NoError(t, m.Prepare(t.Context(), "checked", msg("4")))
	require.NoError(t, m.Commit(in(t.Context(), "of commit"), "4"))
	require.NotContains(t, s.carried("4"), "traceparent")
}

// What the propagators add is checked when there is somebody to hear of it.
func TestWhatAPropagatorAddsIsCheckedAtPrepare(t *testing.T) {
	t.Parallel()
	s := traced(t)
	m := s.messages(half.Config{Checkers: map[string]half.Checker{"": func(context.Context, half.Info) (half.Verdict, error) {
		return half.Unknown, nil
	}}, FirstCheck: time.Hour})
	err := m.Prepare(in(t.Context(), "bad\x00"), "orders", msg("1"))
	require.ErrorIs(t, err, outbox.ErrInvalidMessage)
}
