package outbox

import "testing"

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
