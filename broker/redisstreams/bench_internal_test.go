package redisstreams

import (
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"
)

func benchMessage() *message.Message {
	msg := message.NewMessage("5c9e0c2e-6f1c-4f0e-8f5d-0d5a3d5c3c11", make([]byte, 1024))
	msg.Metadata = message.Metadata{
		"event": "order.placed", "tenant": "t1", "trace": "00-4bf92f3577b34da6a3ce929d0e0e4736-01",
		"millrace_place": "17.3.123456.1",
	}
	return msg
}

// BenchmarkEncode is a message on its way into a stream, until it is an argument of the script.
func BenchmarkEncode(b *testing.B) {
	c, err := Config{URL: "redis://127.0.0.1"}.withDefaults()
	require.NoError(b, err)
	msg := benchMessage()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := encode(c.Marshaler, "orders", msg); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkDecode is an entry on its way to becoming a message.
func BenchmarkDecode(b *testing.B) {
	c, err := Config{URL: "redis://127.0.0.1"}.withDefaults()
	require.NoError(b, err)
	entry, err := c.Marshaler.Marshal("orders", benchMessage())
	require.NoError(b, err)
	values := map[string]any{}
	for name, value := range entry { // as the client gives them
		if raw, ok := value.([]byte); ok {
			value = string(raw)
		}
		values[name] = value
	}
	b.ReportAllocs()
	for b.Loop() {
		decode(c.Marshaler, "orders", "1-1", values)
	}
}
