//go:build unix

package rabbitmq_test

import (
	"fmt"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/internal/testenv"
)

// BenchmarkPublishBatch is what a message of 1 KiB costs this process on its way to a real broker and back,
// amqp091 included, in batches as a busy forwarder sends them: four of 500 at a time.
func BenchmarkPublishBatch(b *testing.B) {
	const each, together = 500, 4
	p := newPublisher(b, queueConfig(testenv.RabbitMQ(b)))
	topics := slices.Repeat([]string{"orders"}, each)
	errs := p.PublishBatch(b.Context(), topics[:1], benchMessages(1))
	require.NoError(b, errs[0])
	batches := make([][]*message.Message, together)
	for i := range batches {
		batches[i] = benchMessages(each)
	}
	b.ReportAllocs()
	b.ResetTimer()
	var failed atomic.Int64
	left, done, used := make(chan struct{}, b.N/each+1), make(chan struct{}), ownCPU()
	for range cap(left) {
		left <- struct{}{}
	}
	close(left)
	for _, msgs := range batches {
		go func() {
			for range left {
				if slices.ContainsFunc(p.PublishBatch(b.Context(), topics, msgs), func(err error) bool { return err != nil }) {
					failed.Add(1)
				}
			}
			done <- struct{}{}
		}()
	}
	for range batches {
		<-done
	}
	b.StopTimer()
	b.ReportMetric(float64((ownCPU()-used).Nanoseconds())/float64(cap(left)*each), "cpu-ns/op")
	require.Zero(b, failed.Load())
}

func benchMessages(n int) []*message.Message {
	msgs := messages(n)
	for i, msg := range msgs {
		msg.Payload = make([]byte, 1024)
		msg.Metadata = message.Metadata{
			"event": "order.placed", "tenant": "t1", "trace": "00-4bf92f3577b34da6a3ce929d0e0e4736-01",
			"millrace_place": fmt.Sprint(i%64, ".3.", 123456+i, ".1"),
		}
	}
	return msgs
}

func ownCPU() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
