package outbox

import (
	"context"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace/internal/txn"
)

// BenchmarkDecodeMetadata is the part of reading a row that is not the database's.
func BenchmarkDecodeMetadata(b *testing.B) {
	text := []byte(`{"event":"order.placed","tenant":"t1","trace":"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}`)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := decodeMetadata(text, "order-1"); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkBuffer is what one message of 1 KiB costs on its way from Publish to the driver.
func BenchmarkBuffer(b *testing.B) {
	enc := newEncoder(Config{})
	msg := message.NewMessage("message-1", make([]byte, 1024))
	msg.Metadata = message.Metadata{"event": "order.placed", "tenant": "t1", "trace": "00-4bf92f3577b34da6a3ce929d0e0e4736-01"}
	WithKey(msg, "order-1")
	ctx := b.Context()
	b.ReportAllocs()
	for b.Loop() {
		entries, err := enc.encode(func(int) context.Context { return ctx }, "orders", []*message.Message{msg})
		if err != nil {
			b.Fatal(err)
		}
		buf := &buffer{dialect: txn.Postgres, prefix: DefaultPrefix}
		if _, err := buf.add(entries); err != nil {
			b.Fatal(err)
		}
		stmts, _ := buf.Flush(ctx)
		if len(stmts) != 1 {
			b.Fatal(stmts)
		}
	}
}
