package outbox_test

import (
	"context"
	"database/sql"
	"errors"
	"strconv"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"
	_ "modernc.org/sqlite"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/outbox"
)

// BenchmarkPublish is what Publish does for one message of 1 KiB until it is in the transaction's buffer. The
// transactions, of a hundred messages, are rolled back, so that nothing is inserted.
func BenchmarkPublish(b *testing.B) {
	raw, err := sql.Open("sqlite", b.TempDir()+"/outbox.db")
	require.NoError(b, err)
	b.Cleanup(func() { _ = raw.Close() })
	db := millrace.SQL(raw)
	box, err := outbox.New(db, outbox.Config{})
	require.NoError(b, err)
	require.NoError(b, box.Migrate(b.Context()))

	const each = 100
	msgs := make([]*message.Message, each)
	for i := range msgs {
		msgs[i] = message.NewMessage("message-"+strconv.Itoa(i), make([]byte, 1024))
		msgs[i].Metadata = message.Metadata{"event": "order.placed", "tenant": "t1", "trace": "00-4bf92f3577b34da6a3ce929d0e0e4736-01"}
		outbox.WithKey(msgs[i], "order-"+strconv.Itoa(i))
	}
	enough := errors.New("enough")
	b.ReportAllocs()
	b.ResetTimer()
	for left := b.N; left > 0; left -= each {
		err := millrace.InTx(b.Context(), db, func(ctx context.Context, _ *millrace.Tx) error {
			for _, msg := range msgs[:min(left, each)] {
				if err := box.Publish(ctx, "orders", msg); err != nil {
					return err
				}
			}
			return enough
		})
		require.ErrorIs(b, err, enough)
	}
}
