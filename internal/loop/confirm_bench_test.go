package loop_test

import (
	"context"
	"database/sql"
	"fmt"
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/broker/rabbitmq"
	"github.com/millrace-go/millrace/broker/redisstreams"
	"github.com/millrace-go/millrace/dedup"
	"github.com/millrace-go/millrace/internal/fault/proxy"
	"github.com/millrace-go/millrace/internal/meta"
	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/middleware"
	"github.com/millrace-go/millrace/outbox"
)

// BenchmarkConsumer is a consumer with and without confirmations: of a handler that does nothing, which is what
// confirming costs at most, and of one with an inbox, at 0 and 2 ms to its database. Compare runs that alternate:
// -count.
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
			b.Run(fmt.Sprintf("%s/nothing/confirming=%s", name, confirming), func(b *testing.B) {
				pub, sub, prefix := open(b)
				b.Cleanup(func() { _ = pub.Close() })
				consume(b, pub, sub, prefix, confirming, nil)
			})
		}
		for _, roundTrip := range []time.Duration{0, 2 * time.Millisecond} {
			for _, confirming := range []string{"no", "waiting", "background", "inside"} {
				b.Run(fmt.Sprintf("%s/inbox at %s/confirming=%s", name, roundTrip, confirming), func(b *testing.B) {
					pub, sub, prefix := open(b)
					b.Cleanup(func() { _ = pub.Close() })
					consume(b, pub, sub, prefix, confirming, newEffects(b, roundTrip))
				})
			}
		}
	}
}

// effects is a database that the handler writes into, with an inbox.
type effects struct {
	db    *millrace.SQLDB
	inbox *dedup.SQLInbox
	box   *outbox.Box
}

func newEffects(b *testing.B, roundTrip time.Duration) *effects {
	at, err := url.Parse(testenv.Postgres(b))
	require.NoError(b, err)
	if roundTrip > 0 {
		at.Host = proxy.Delayed(b, at.Host, roundTrip)
	}
	raw, err := sql.Open("pgx", at.String())
	require.NoError(b, err)
	raw.SetMaxOpenConns(20)
	raw.SetMaxIdleConns(20)
	b.Cleanup(func() { _ = raw.Close() })
	e := &effects{db: millrace.SQL(raw)}
	require.NoError(b, millrace.Migrate(b.Context(), e.db, dedup.Migrations(), outbox.Migrations()))
	e.inbox, err = dedup.NewInbox(e.db, dedup.InboxConfig{})
	require.NoError(b, err)
	e.box, err = outbox.New(e.db, outbox.Config{})
	require.NoError(b, err)
	_, err = raw.ExecContext(b.Context(), `CREATE TABLE effects (id text NOT NULL)`)
	require.NoError(b, err)
	return e
}

func (e *effects) handle(msg *message.Message) error {
	if e == nil {
		return nil
	}
	return millrace.InTx(msg.Context(), e.db, func(ctx context.Context, tx *millrace.Tx) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO effects (id) VALUES ($1)`, msg.UUID)
		return err
	}, millrace.Mandatory())
}

func consume(b *testing.B, pub message.Publisher, sub func(string) message.Subscriber, prefix, confirming string, e *effects) {
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
		cfg := middleware.ConfirmConfig{Group: group, Publisher: pub, Background: confirming == "background"}
		if confirming == "inside" {
			cfg.Outbox = e.box.Publisher()
		}
		m, err := middleware.Confirm(cfg)
		require.NoError(b, err)
		router.AddMiddleware(m)
	}
	if e != nil {
		m, err := middleware.Transactional(e.db, e.inbox, middleware.TransactionalConfig{})
		require.NoError(b, err)
		router.AddMiddleware(m)
	}
	ctx, cancel := context.WithCancel(b.Context())
	router.AddConsumerHandler(group, topic, sub(group), e.handle)
	b.ResetTimer()
	done := make(chan error, 1)
	go func() { done <- millrace.RunRouter(ctx, router) }()
	<-all
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
	cancel()
	require.NoError(b, <-done)
}
