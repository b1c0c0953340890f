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
				// Nor is anything to depend on how the session writes a time.
				url := b.source(t) + "&default_query_exec_mode=" + mode + "&datestyle=German&timezone=Asia/Kolkata"
				o := connect(t, b, url, outbox.Config{Policies: []outbox.Policy{{Topics: []string{"kept"}, After: outbox.Keep}}})
				require.NoError(t, o.box.Migrate(t.Context()))
				require.NoError(t, o.inTx(t.Context(), func(ctx context.Context) error {
					require.NoError(t, o.box.Publish(ctx, "orders", msg("1", "one"), msg("2", "two")))
					require.NoError(t, o.box.Publish(ctx, "kept", msg("3", "three")))
					return o.box.Publish(ctx, "orders", outbox.WithDelay(outbox.WithSchedule(msg("4", "four"), "name"), time.Hour))
				}))
				rows := o.read("orders")
				require.Len(t, rows, 2)
				require.WithinDuration(t, time.Now(), rows[0].CreatedAt, time.Minute)
				require.Len(t, o.read("kept"), 1)
				require.Equal(t, 4, o.count())
				require.NoError(t, o.box.Check(t.Context()))
			})
		}
	}
}

// It is worked out with a float8, which has microseconds enough.
func TestTheTimeOfARowIsExact(t *testing.T) {
	t.Parallel()
	b := open(t, postgresPool, outbox.Config{})
	require.Zero(t, b.one(`SELECT count(*) FROM (
		SELECT timestamptz '1970-01-01 UTC' + floor(random() * 4291747200e6) * interval '1 microsecond' AS created_at FROM generate_series(1, 200000)) o
		WHERE `+outbox.CreatedAt+` <> (extract(epoch FROM o.created_at) * 1000000)::bigint`))
}
