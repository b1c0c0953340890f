package outbox_test

import (
	"context"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/outbox"
)

type tenant struct{}

func TestPropagatorsCarryWhatTheContextKnowsIntoTheMetadata(t *testing.T) {
	tenantOf := outbox.ContextValue("tenant", func(ctx context.Context) string {
		name, _ := ctx.Value(tenant{}).(string)
		return name
	})
	seen := outbox.PropagatorFunc(func(_ context.Context, m message.Metadata) {
		if m["tenant"] != "" {
			m["seen"] = "yes" // what was added before is there
		}
	})
	b := open(t, sqlite, outbox.Config{Propagators: []outbox.Propagator{tenantOf, seen}})
	given := msg("1", "")
	own := msg("2", "")
	own.Metadata.Set("tenant", "own")
	require.NoError(t, b.inTx(t.Context(), func(ctx context.Context) error {
		return b.box.Publish(context.WithValue(ctx, tenant{}, "acme"), "orders", given, own)
	}))
	require.NoError(t, b.inTx(t.Context(), func(ctx context.Context) error {
		first, second := msg("3", ""), msg("4", "")
		first.SetContext(context.WithValue(ctx, tenant{}, "umbrella"))
		second.SetContext(ctx)
		return b.box.Publisher().Publish("orders", first, second)
	}))
	rows := b.read("orders")
	require.Equal(t, message.Metadata{"tenant": "acme", "seen": "yes"}, rows[0].Metadata)
	require.Equal(t, "own", rows[1].Metadata["tenant"], "what the message says goes before")
	require.Equal(t, "umbrella", rows[2].Metadata["tenant"], "a Publisher takes each message's context")
	require.Empty(t, rows[3].Metadata)
	require.Empty(t, given.Metadata, "the message that was given stays as it was")
}

func TestWhatAPropagatorAddsIsCheckedAsAllMetadata(t *testing.T) {
	b := open(t, sqlite, outbox.Config{Propagators: []outbox.Propagator{
		outbox.ContextValue("bad", func(context.Context) string { return "secret\x00" }),
	}})
	err := b.inTx(t.Context(), func(ctx context.Context) error { return b.box.Publish(ctx, "orders", msg("1", "")) })
	require.ErrorIs(t, err, outbox.ErrInvalidMessage)
	require.NotContains(t, err.Error(), "secret")
}
