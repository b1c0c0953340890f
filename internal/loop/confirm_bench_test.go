package loop_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

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

// BenchmarkConsumer has a handler that does nothing, with and without direct confirmations: the ratio of the two
// is what confirming costs a consumer at most. Compare runs that alternate: -count.
func BenchmarkConsumer(b *testing.B) {
	for name, open := range map[string]func(b *testing.B) (pub message.Publisher, sub func(group string) message.Subscriber, prefix string){
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
	} {
		for _, confirming := range []string{"no", "waiting", "background"} {
			b.Run(fmt.Sprintf("%s/confirming=%s", name, confirming), func(b *testing.B) {
				pub, sub, prefix := open(b)
				b.Cleanup(func() { _ = pub.Close() })
				consume(b, pub, sub, prefix, confirming)
			})
		}
	}
}

func consume(b *testing.B, pub message.Publisher, sub func(string) message.Subscriber, prefix, confirming string) {
	topic, words := prefix+"orders", prefix+"confirmations"
	for _, t := range []string{topic, words} { // so that the broker keeps what comes
		s := sub(group)
		require.NoError(b, s.(message.SubscribeInitializer).SubscribeInitialize(t))
		require.NoError(b, s.Close())
	}
	topics, msgs := make([]string, b.N), make([]*message.Message, b.N)
	for i := range msgs {
		topics[i], msgs[i] = topic, message.NewMessage(watermill.NewUUID(), make([]byte, 1024))
		msgs[i].Metadata[meta.Confirm] = words
	}
	for from := 0; from < b.N; from += 500 {
		to := min(from+500, b.N)
		for _, err := range pub.(interface {
			PublishBatch(context.Context, []string, []*message.Message) []error
		}).PublishBatch(b.Context(), topics[from:to], msgs[from:to]) {
			require.NoError(b, err)
		}
	}
	router, err := message.NewRouter(message.RouterConfig{}, watermill.NopLogger{})
	require.NoError(b, err)
	var handled atomic.Int64
	all := make(chan struct{})
	count := func(next message.HandlerFunc) message.HandlerFunc { // outermost: the message is confirmed
		return func(msg *message.Message) ([]*message.Message, error) {
			out, err := next(msg)
			if err == nil && handled.Add(1) == int64(b.N) {
				close(all)
			}
			return out, err
		}
	}
	router.AddMiddleware(count)
	if confirming != "no" {
		m, err := middleware.Confirm(middleware.ConfirmConfig{Group: group, Publisher: pub, Background: confirming == "background"})
		require.NoError(b, err)
		router.AddMiddleware(m)
	}
	ctx, cancel := context.WithCancel(b.Context())
	router.AddConsumerHandler(group, topic, sub(group), func(*message.Message) error { return nil })
	b.ResetTimer()
	done := make(chan error, 1)
	go func() { done <- millrace.RunRouter(ctx, router) }()
	<-all
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
	cancel()
	require.NoError(b, <-done)
}
