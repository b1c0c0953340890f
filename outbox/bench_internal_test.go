package outbox

import (
	"context"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace/internal/txn"
)

// BenchmarkDecodeMetadata is the part of reading a row that is not the database's.
func BenchmarkDecodeMetadata(b *testing.B) {
	text := `{"event":"order.placed","tenant":"t1","trace":"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}`
	b.ReportAllocs()
	for b.Loop() {
		if _, err := decodeMetadata(text, "order-1"); err != nil {
			b.Fatal(err)
		}
	}
}

// answer is a row of a driver that costs nothing.
type answer struct{ metadata string }

func (a answer) Scan(dest ...any) error {
	*dest[0].(*int64), *dest[1].(*string), *dest[3].(*string) = 123456, "5c9e0c2e-6f1c-4f0e-8f5d-0d5a3d5c3c11", "orders"
	*dest[7].(*string) = a.metadata
	return nil
}

// BenchmarkReadRow is what a row costs beside what the driver does.
func BenchmarkReadRow(b *testing.B) {
	const each = 500
	row := txn.Scanner(answer{`{"event":"order.placed","tenant":"t1","trace":"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}`})
	b.ReportAllocs()
	for done := 0; done < b.N; done += each {
		candidates := 0
		in := newRowReader(&candidates)
		for range each {
			if r, err := in.read(row); err != nil || r.Err != nil {
				b.Fatal(err, r.Err)
			}
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
