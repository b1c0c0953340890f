package rabbitmq

import (
	"fmt"
	"strconv"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	amqp091 "github.com/rabbitmq/amqp091-go"
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

// BenchmarkPrepare is a message on its way to becoming an AMQP frame, in batches of 500 that differ from each
// other in what differs between messages.
func BenchmarkPrepare(b *testing.B) {
	c, err := Config{URL: "amqp://127.0.0.1"}.withDefaults()
	require.NoError(b, err)
	const each = 500
	var msgs [3][each]*message.Message
	for i := range msgs {
		for j := range msgs[i] {
			msg, n := benchMessage(), i*each+j
			msg.UUID = fmt.Sprintf("5c9e0c2e-6f1c-4f0e-8f5d-0d5a3d5c%04x", n)
			msg.Metadata["millrace_place"] = fmt.Sprint(n*7%64, ".3.", 123456+n, ".1")
			msg.Metadata["tenant"] = "t" + strconv.Itoa(n%99)
			msgs[i][j] = msg
		}
	}
	var memory batchPool
	b.ReportAllocs()
	b.ResetTimer()
	for done := 0; done < b.N; done += each {
		batch := memory.get(each)
		for i, msg := range msgs[done/each%len(msgs)] {
			if err := c.prepare(&batch.messages[i], "orders", msg); err != nil {
				b.Fatal(err)
			}
		}
		memory.put(batch)
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
