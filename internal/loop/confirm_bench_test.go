package loop_test

import (
	"context"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/broker/rabbitmq"
	"github.com/millrace-go/millrace/broker/redisstreams"
	"github.com/millrace-go/millrace/internal/meta"
	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/middleware"
)

// The ways to confirm: not at all; after the handler, and wait or not; in the handler's transaction.
var confirmings = []string{"no", "waiting", "background", "inside"}

// BenchmarkConfirming is what confirming costs a consumer: one that does nothing, where it costs the most, and one
// that writes a row in a transaction with its inbox, on database/sql and on native pgx, at 0 and 2 ms to its database.
//
// One iteration is a round: so many messages in each way, one way after the other, so that what else happens on
// the machine happens to all. Told are medians of -benchtime=30x rounds: messages a second without, how much
// slower the others are in percent; for each message the CPU of this process, which also publishes it, and with
// a database the round trips.
func BenchmarkConfirming(b *testing.B) {
	brokers := map[string]func(b *testing.B) (pub message.Publisher, sub func(group string) message.Subscriber, prefix string){
		"rabbitmq": func(b *testing.B) (message.Publisher, func(string) message.Subscriber, string) {
			url := testenv.RabbitMQ(b)
			pub, err := rabbitmq.NewPublisher(rabbitmq.Config{URL: url})
			require.NoError(b, err)
			return pub, func(group string) message.Subscriber {
				sub, err := rabbitmq.NewSubscriber(rabbitmq.Config{URL: url, ConsumerGroup: group})
				require.NoError(b, err)
				return sub
			}, ""
		},
		"redis": func(b *testing.B) (message.Publisher, func(string) message.Subscriber, string) {
			url := testenv.Redis(b)
			pub, err := redisstreams.NewPublisher(redisstreams.Config{URL: url})
			require.NoError(b, err)
			return pub, func(group string) message.Subscriber {
				sub, err := redisstreams.NewSubscriber(redisstreams.Config{URL: url, ConsumerGroup: group})
				require.NoError(b, err)
				return sub
			}, testenv.RedisPrefix(b)
		},
	}
	handlers := map[string]func(t testing.TB) *consumer{
		"nothing":       func(testing.TB) *consumer { return nil },
		"sql at 0 ms":   func(t testing.TB) *consumer { return newSQLConsumer(t, 0) },
		"sql at 2 ms":   func(t testing.TB) *consumer { return newSQLConsumer(t, 2*time.Millisecond) },
		"pgxtx at 0 ms": func(t testing.TB) *consumer { return newPgxConsumer(t, 0) },
		"pgxtx at 2 ms": func(t testing.TB) *consumer { return newPgxConsumer(t, 2*time.Millisecond) },
	}
	for broker, open := range brokers {
		for handler, newConsumer := range handlers {
			b.Run(broker+"/"+handler, func(b *testing.B) {
				pub, sub, prefix := open(b)
				b.Cleanup(func() { _ = pub.Close() })
				c := &confirmingBench{b, pub, sub, prefix + "orders", prefix + "confirmations", newConsumer(b)}
				c.run()
			})
		}
	}
}

type confirmingBench struct {
	*testing.B
	pub      message.Publisher
	sub      func(group string) message.Subscriber
	topic    string
	words    string
	consumer *consumer // nil: it does nothing
}

func (b *confirmingBench) run() {
	for _, t := range []string{b.topic, b.words} { // so that the broker keeps what comes
		s := b.sub(group)
		require.NoError(b, s.(message.SubscribeInitializer).SubscribeInitialize(t))
		require.NoError(b, s.Close())
	}
	ways := confirmings
	if b.consumer == nil {
		ways = ways[:3]
	}
	messages := 4000
	if b.consumer != nil {
		messages = 1000
	}
	took, trips, cpu := map[string][]float64{}, map[string][]float64{}, map[string][]float64{}
	for round := range b.N + 1 {
		for i := range ways {
			way := ways[(round+i)%len(ways)]
			before := ownCPU()
			t, n := b.round(way, messages)
			if round > 0 { // the first one warms up
				took[way], trips[way] = append(took[way], t.Seconds()), append(trips[way], n)
				cpu[way] = append(cpu[way], (ownCPU()-before).Seconds()*1e6/float64(messages))
			}
		}
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(messages)/median(took["no"]), "msg/s")
	for _, way := range ways {
		b.ReportMetric(median(cpu[way]), "µs-"+way)
		if b.consumer != nil {
			b.ReportMetric(median(trips[way]), "trips-"+way)
		}
		if way == "no" {
			continue
		}
		var slower []float64
		for i := range took[way] {
			slower = append(slower, 100*(1-took["no"][i]/took[way][i]))
		}
		b.ReportMetric(median(slower), "%-"+way)
	}
}

// ownCPU is what this process has used, which a busy machine does not change much.
func ownCPU() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u) // it has no reason to fail
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func median(all []float64) float64 {
	all = slices.Sorted(slices.Values(all))
	return (all[(len(all)-1)/2] + all[len(all)/2]) / 2
}

// round handles so many messages, and tells how long that took, and the round trips of each.
func (b *confirmingBench) round(way string, messages int) (took time.Duration, trips float64) {
	for from := 0; from < messages; from += 500 {
		n := min(500, messages-from)
		topics, msgs := make([]string, n), make([]*message.Message, n)
		for i := range msgs {
			topics[i], msgs[i] = b.topic, message.NewMessage(watermill.NewUUID(), make([]byte, 1024))
			msgs[i].Metadata[meta.Confirm] = b.words
		}
		for _, err := range b.pub.(interface {
			PublishBatch(context.Context, []string, []*message.Message) []error
		}).PublishBatch(b.Context(), topics, msgs) {
			require.NoError(b, err)
		}
	}
	router, err := message.NewRouter(message.RouterConfig{}, watermill.NopLogger{})
	require.NoError(b, err)
	var handled atomic.Int64
	var began time.Time
	all := make(chan struct{})
	router.AddMiddleware(func(next message.HandlerFunc) message.HandlerFunc { // outermost: the message is confirmed
		return func(msg *message.Message) ([]*message.Message, error) {
			out, err := next(msg)
			if err != nil {
				b.Error(err)
			}
			switch handled.Add(1) {
			case 1:
				began = time.Now()
			case int64(messages):
				took = time.Since(began)
				close(all)
			}
			return out, err
		}
	})
	b.addChain(router, way)
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	done := make(chan error, 1)
	before := b.trips()
	go func() { done <- millrace.RunRouter(ctx, router) }()
	<-all
	trips = float64(b.trips()-before) / float64(messages)
	cancel()
	require.NoError(b, <-done)
	return took, trips
}

func (b *confirmingBench) trips() int64 {
	if b.consumer == nil {
		return 0
	}
	return b.consumer.trips.Load()
}

func (b *confirmingBench) addChain(router *message.Router, way string) {
	handle := func(*message.Message) error { return nil }
	if way != "no" {
		cfg := middleware.ConfirmConfig{Group: group, Publisher: b.pub, Background: way == "background"}
		if way == "inside" {
			cfg.Outbox = b.consumer.box.Publisher()
		}
		confirm, err := middleware.Confirm(cfg)
		require.NoError(b, err)
		router.AddMiddleware(confirm)
	}
	if b.consumer != nil {
		router.AddMiddleware(b.consumer.transactional)
		handle = b.consumer.handle
	}
	router.AddConsumerHandler(group, b.topic, b.sub(group), handle)
}
