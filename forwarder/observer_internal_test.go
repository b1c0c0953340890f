package forwarder

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/outbox/outboxtest"
)

type spanKey struct{}

func TestObserversHearOfEveryEventOfAMessagesLife(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := outboxtest.NewMemory()
		store.Insert(outboxtest.Entry{ID: "bad", Topic: "t", Key: "bad", Meta: map[string]string{"traceparent": "00-x"}})
		fill(store, 100, 10)
		var mu sync.Mutex
		heard := map[string][]string{}
		note := func(event string, ms ...Message) {
			mu.Lock()
			defer mu.Unlock()
			for _, m := range ms {
				heard[event] = append(heard[event], m.ID)
			}
		}
		held := 0
		var states []error
		o := Observer{
			OnPublish: func(ctx context.Context, b Batch) context.Context {
				note("publish", b.Messages...)
				for _, m := range b.Messages {
					require.Equal(t, "main", m.Destination)
					require.True(t, m.HasKey)
					require.NotZero(t, m.Attempt)
					require.False(t, m.CreatedAt.IsZero())
					if m.ID == "bad" {
						require.Equal(t, "00-x", m.Metadata["traceparent"])
					}
					m.Metadata["traceparent"] = "01-" + m.ID
				}
				return context.WithValue(ctx, spanKey{}, len(b.Messages))
			},
			OnPublished: func(ctx context.Context, b Batch, answers []Answer) {
				require.Equal(t, len(b.Messages), ctx.Value(spanKey{}))
				for i, a := range answers {
					note(a.Outcome.String(), b.Messages[i])
				}
			},
			OnSettled: func(_ context.Context, b Batch) { note("settled", b.Messages...) },
			OnRefused: func(_ context.Context, m Message, f Failure) {
				require.True(t, f.Counted)
				require.NotZero(t, f.RetryIn)
				note("recorded", m)
			},
			OnParked: func(_ context.Context, m Message, f Failure) {
				require.Equal(t, "too_large", f.Reason)
				note("parked", m)
			},
			OnLanes:       func(_ context.Context, c LaneChange) { held = c.Held },
			OnDestination: func(_ context.Context, name string, err error) { states = append(states, err) },
		}
		pub := &broker{answer: func(m *message.Message) error {
			if m.Metadata["traceparent"] != "01-"+m.UUID || m.Context().Value(spanKey{}) == nil {
				t.Errorf("%s does not carry what the observer set", m.UUID)
			}
			return refusing("bad", "too_large")(m)
		}}
		_, _, stop := start(t, store, pub, Config{Destination: "main", MaxAttempts: 3, Observers: []Observer{{}, o}})
		until(t, time.Minute, "all gone", func() bool { return len(store.Waiting()) == 0 })
		require.Equal(t, 64, held)
		pub.set(down)
		fill(store, 1, 1)
		time.Sleep(5 * time.Second)
		pub.set(nil)
		until(t, time.Minute, "all gone", func() bool { return len(store.Waiting()) == 0 })
		require.NoError(t, stop())
		require.Len(t, heard["delivered"], 101)
		require.Len(t, heard["settled"], 101)
		require.Len(t, heard["refused"], 3)
		require.Equal(t, []string{"bad", "bad"}, heard["recorded"])
		require.Equal(t, []string{"bad"}, heard["parked"])
		require.Len(t, heard["publish"], 101+3+len(heard["unsure"]))
		require.Len(t, states, 2)
		require.ErrorIs(t, states[0], errDown)
		require.NoError(t, states[1])
	})
}
