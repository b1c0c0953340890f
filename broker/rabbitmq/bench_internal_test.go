package rabbitmq

import (
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	amqp091 "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"
)

func benchMessage() *message.Message {
	msg := message.NewMessage("5c9e0c2e-6f1c-4f0e-8f5d-0d5a3d5c3c11", make([]byte, 1024))
	msg.Metadata = message.Metadata{
		"event": "order.placed", "tenant": "t1", "trace": "00-4bf92f3577b34da6a3ce929d0e0e4736-01",
		"millrace_position": "123456", "millrace_lane": "17", "millrace_epoch": "3", "millrace_attempt": "1",
	}
	return msg
}

// BenchmarkPrepare is a message on its way to becoming an AMQP frame.
func BenchmarkPrepare(b *testing.B) {
	c, err := Config{URL: "amqp://127.0.0.1"}.withDefaults()
	require.NoError(b, err)
	msg := benchMessage()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.prepare("orders", msg); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkUnmarshal is a delivery on its way to becoming a message.
func BenchmarkUnmarshal(b *testing.B) {
	p, err := Marshaler{}.Marshal(benchMessage())
	require.NoError(b, err)
	d := amqp091.Delivery{Headers: p.Headers, Body: p.Body}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := (Marshaler{}).Unmarshal(d); err != nil {
			b.Fatal(err)
		}
	}
}
