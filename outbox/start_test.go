package outbox_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/outbox"
)

// roundTrips remembers what is sent, and "prepare" for each statement that is prepared before.
type roundTrips struct{ statements }

func (r *roundTrips) TracePrepareStart(ctx context.Context, _ *pgx.Conn, _ pgx.TracePrepareStartData) context.Context {
	return ctx
}

func (r *roundTrips) TracePrepareEnd(_ context.Context, _ *pgx.Conn, p pgx.TracePrepareEndData) {
	if !p.AlreadyPrepared {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.all = append(r.all, "prepare")
	}
}

// A forwarder that starts does one thing after the other, on a database that may be far away.
func TestAStartTakesFewRoundTrips(t *testing.T) {
	t.Parallel()
	b := open(t, postgresPool, outbox.Config{})
	b.backlog("t", 10)
	sent := &roundTrips{}
	b.traced(sent)
	store := b.box.Store()
	proof := func(trips []string) bool { return strings.Contains(strings.Join(trips, "\n"), "pg_locks") }

	require.NoError(t, store.Check(t.Context()))
	require.Len(t, sent.take(), 5)
	require.NoError(t, store.Join(t.Context(), "r", time.Minute))
	grants, err := store.Claim(t.Context(), "r", outbox.Lanes)
	require.NoError(t, err)
	lanes := make([]int, len(grants))
	for i, g := range grants {
		lanes[i] = g.Lane
	}
	_, err = store.Stops(t.Context(), lanes)
	require.NoError(t, err)
	require.Len(t, sent.take(), 4, "one of them asks how large the table is")

	_, err = store.Topics(t.Context())
	require.NoError(t, err)
	require.Len(t, sent.take(), 2)
	q := outbox.Read{Lanes: lanes, Topics: []string{"t"}, MaxRows: 5, MaxBytes: 1 << 20}
	rows, err := store.Read(t.Context(), q)
	require.NoError(t, err)
	require.Len(t, rows, 5)
	first := sent.take()
	require.Len(t, first, 2)
	require.False(t, proof(first), "the first read waits for nothing")
	_, err = store.Read(t.Context(), q)
	require.NoError(t, err)
	require.True(t, proof(sent.take()), "the second one is not to walk over what the first one brought")
	_, err = store.Read(t.Context(), q)
	require.NoError(t, err)
	require.False(t, proof(sent.take()))
}

// A forwarder that finds nothing to read proves its bound all the same: it looks for topics, and is not to walk
// over what was deleted each time.
func TestAnOutboxWithNothingToReadIsNotWalkedOver(t *testing.T) {
	t.Parallel()
	b := open(t, postgresPool, outbox.Config{})
	b.backlog("t", 10)
	b.exec(`DELETE FROM millrace_outbox`)
	_, err := b.box.Store().Topics(t.Context())
	require.NoError(t, err)
	outbox.Later(b.box.Store(), 2*time.Second)
	_, err = b.box.Store().Topics(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, 10, outbox.Bound(b.box.Store()))
}
