package outbox_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/outbox"
)

// Poolers ask for other modes than the one that prepares. The columns have types of their own, of which a driver
// knows nothing.
func TestMessagesAreWrittenAndReadInEveryModeOfPgx(t *testing.T) {
	t.Parallel()
	for _, b := range []backend{postgres, postgresPool} {
		for _, mode := range []string{"cache_statement", "cache_describe", "describe_exec", "exec", "simple_protocol"} {
			t.Run(b.name+"/"+mode, func(t *testing.T) {
				t.Parallel()
				url := b.source(t) + "&default_query_exec_mode=" + mode
				o := connect(t, b, url, outbox.Config{Policies: []outbox.Policy{{Topics: []string{"kept"}, After: outbox.Keep}}})
				require.NoError(t, o.box.Migrate(t.Context()))
				require.NoError(t, o.inTx(t.Context(), func(ctx context.Context) error {
					require.NoError(t, o.box.Publish(ctx, "orders", msg("1", "one"), msg("2", "two")))
					require.NoError(t, o.box.Publish(ctx, "kept", msg("3", "three")))
					return o.box.Publish(ctx, "orders", outbox.WithDelay(outbox.WithSchedule(msg("4", "four"), "name"), time.Hour))
				}))
				require.Len(t, o.read("orders"), 2)
				require.Len(t, o.read("kept"), 1)
				require.Equal(t, 4, o.count())
				require.NoError(t, o.box.Check(t.Context()))
			})
		}
	}
}
