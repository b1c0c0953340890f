package forwarder_test

import (
	"context"
	"database/sql"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/forwarder"
	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/outbox"
)

// accepting is a broker that has everything at once.
type accepting struct{}

func (accepting) Publish(string, ...*message.Message) error { return nil }
func (accepting) Close() error                              { return nil }

// What is kept goes by itself: nobody has to remember to start something else.
func TestAForwarderForgetsWhatWasKeptForLongEnough(t *testing.T) {
	t.Parallel()
	raw, err := sql.Open("sqlite", "file:"+testenv.SQLite(t)+"?_pragma=journal_mode(wal)&_pragma=busy_timeout(5000)")
	require.NoError(t, err)
	t.Cleanup(func() { _ = raw.Close() })
	db := millrace.SQL(raw)
	box, err := outbox.New(db, outbox.Config{
		Policies:  []outbox.Policy{{Topics: []string{"#"}, After: outbox.Keep, Retention: time.Millisecond}},
		Retention: outbox.Retention{Every: 10 * time.Millisecond},
	})
	require.NoError(t, err)
	require.NoError(t, box.Migrate(t.Context()))
	require.NoError(t, millrace.InTx(t.Context(), db, func(ctx context.Context, _ *millrace.Tx) error {
		return box.Publish(ctx, "orders", message.NewMessage("m", nil))
	}))
	fwd, err := forwarder.New(box, accepting{}, forwarder.Config{Lease: 2 * time.Minute})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- fwd.Run(ctx) }()
	testenv.Eventually(t, 2*time.Minute, "the message was sent, kept, and forgotten", func() bool {
		var left int
		require.NoError(t, raw.QueryRowContext(t.Context(),
			`SELECT (SELECT count(*) FROM millrace_outbox) + (SELECT count(*) FROM millrace_sent)`).Scan(&left))
		return left == 0
	})
	cancel()
	require.NoError(t, <-done)
}
