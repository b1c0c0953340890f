package outbox_test

import (
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/outbox"
	"github.com/millrace-go/millrace/pgxtx"
)

// BenchmarkSettle is what settling costs a row, in batches as large as a busy forwarder's, of all lanes. The
// rows are made outside of the measured time.
func BenchmarkSettle(b *testing.B) {
	const each = 1000
	pool, err := pgxpool.New(b.Context(), testenv.Postgres(b))
	require.NoError(b, err)
	b.Cleanup(pool.Close)
	box, err := outbox.New(pgxtx.Pool(pool), outbox.Config{})
	require.NoError(b, err)
	require.NoError(b, box.Migrate(b.Context()))
	store := box.Store()
	require.NoError(b, store.Join(b.Context(), "a", time.Hour))
	grants, err := store.Claim(b.Context(), "a", outbox.Lanes)
	require.NoError(b, err)
	refs := make([]outbox.Ref, each)
	first := int64(1)
	b.ReportAllocs()
	b.ResetTimer()
	for left := b.N; left > 0; left -= each {
		b.StopTimer()
		_, err := pool.Exec(b.Context(), fmt.Sprintf(`INSERT INTO millrace_outbox (pos, id, lane, topic, payload, size)
			OVERRIDING SYSTEM VALUE SELECT n, 'message-' || n, n %% 64, 'orders', decode(repeat('ab', 1024), 'hex'), 1024
			FROM generate_series(%d::bigint, %d) n`, first, first+each-1))
		require.NoError(b, err)
		for i := range refs {
			refs[i] = outbox.Ref{Pos: first + int64(i), ID: "message-" + strconv.FormatInt(first+int64(i), 10)}
		}
		first += each
		b.StartTimer()
		s, err := store.Settle(b.Context(), grants, refs)
		require.NoError(b, err)
		require.Len(b, s.Done, each)
	}
}
