package redisstreams

import (
	"fmt"
	"strings"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/internal/meta"
	"github.com/millrace-go/millrace/internal/testenv"
)

func benchMessage() *message.Message {
	msg := message.NewMessage("5c9e0c2e-6f1c-4f0e-8f5d-0d5a3d5c3c11", make([]byte, 1024))
	msg.Metadata = message.Metadata{
		"event": "order.placed", "tenant": "t1", "trace": "00-4bf92f3577b34da6a3ce929d0e0e4736-01",
		"millrace_place": "17.3.123456.1",
	}
	return msg
}

// BenchmarkEncode is a message on its way into a stream, until it is the arguments of a command.
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

// BenchmarkPublish is a batch of 500 messages to one stream, in which each key comes that often. Beside the
// publisher's own time and memory it tells what Redis needs for it.
func BenchmarkPublish(b *testing.B) {
	const size = 500
	for _, perKey := range []int{1, 2, 10} {
		b.Run(fmt.Sprint(perKey, " of a key"), func(b *testing.B) {
			server := testenv.OwnRedis(b, "--appendonly", "no")
			p, err := NewPublisher(Config{URL: server.URL})
			require.NoError(b, err)
			defer p.Close()
			client := p.client.UniversalClient
			topics, msgs := make([]string, size), make([]*message.Message, size)
			for i := range msgs {
				topics[i], msgs[i] = "orders", benchMessage()
				msgs[i].Metadata[meta.Key] = fmt.Sprint("customer-", i/perKey)
			}
			batches, used := 0, 0.0
			before := usedCPU(b, client)
			b.ReportAllocs()
			for b.Loop() {
				for _, err := range p.PublishBatch(b.Context(), topics, msgs) {
					if err != nil {
						b.Fatal(err)
					}
				}
				if batches++; batches%100 == 0 { // so that the stream does not fill the memory
					b.StopTimer()
					used += usedCPU(b, client) - before
					require.NoError(b, client.FlushAll(b.Context()).Err())
					before = usedCPU(b, client)
					b.StartTimer()
				}
			}
			used += usedCPU(b, client) - before
			n := float64(batches * size)
			b.ReportMetric(1e6*used/n, "redis-µs/msg")
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/n, "ns/msg")
		})
	}
}

// usedCPU is the seconds of CPU that the server has used.
func usedCPU(b *testing.B, client redis.UniversalClient) (seconds float64) {
	info, err := client.Info(b.Context(), "cpu").Result()
	require.NoError(b, err)
	for line := range strings.Lines(info) {
		var s float64
		if n, _ := fmt.Sscanf(line, "used_cpu_user:%g", &s); n == 1 {
			seconds += s
		}
		if n, _ := fmt.Sscanf(line, "used_cpu_sys:%g", &s); n == 1 {
			seconds += s
		}
	}
	return seconds
}
