package loop_test

import (
	"context"
	"database/sql"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	_ "github.com/go-sql-driver/mysql"
	_ "github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/broker/rabbitmq"
	"github.com/millrace-go/millrace/broker/redisstreams"
	"github.com/millrace-go/millrace/dedup"
	"github.com/millrace-go/millrace/forwarder"
	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/middleware"
	"github.com/millrace-go/millrace/outbox"
)

func TestMain(m *testing.M) { testenv.Main(m) }

const group = "billing"

// broker is one of the brokers, with names that are this test's own.
type broker struct {
	name   string
	prefix string // of topics
	pub    message.Publisher
	sub    func(group string) message.Subscriber
	// purge throws away what waits for a group.
	purge func(topic string)
}

func eachBroker(t *testing.T, test func(t *testing.T, b *broker)) {
	t.Run("rabbitmq", func(t *testing.T) {
		t.Parallel()
		test(t, onRabbitMQ(t))
	})
	t.Run("redis", func(t *testing.T) {
		t.Parallel()
		test(t, onRedis(t))
	})
}

func onRabbitMQ(t *testing.T) *broker {
	url := testenv.RabbitMQ(t)
	pub, err := rabbitmq.NewPublisher(rabbitmq.Config{URL: url})
	require.NoError(t, err)
	t.Cleanup(func() { _ = pub.Close() })
	return &broker{
		name: "rabbitmq", pub: pub,
		sub: func(group string) message.Subscriber {
			sub, err := rabbitmq.NewSubscriber(rabbitmq.Config{URL: url, ConsumerGroup: group})
			require.NoError(t, err)
			t.Cleanup(func() { _ = sub.Close() })
			return sub
		},
		purge: func(topic string) { purgeQueue(t, url, topic+"_"+group) },
	}
}

func onRedis(t *testing.T) *broker {
	url, prefix := testenv.Redis(t), testenv.RedisPrefix(t)
	pub, err := redisstreams.NewPublisher(redisstreams.Config{URL: url})
	require.NoError(t, err)
	t.Cleanup(func() { _ = pub.Close() })
	return &broker{
		name: "redis", prefix: prefix, pub: pub,
		sub: func(group string) message.Subscriber {
			sub, err := redisstreams.NewSubscriber(redisstreams.Config{URL: url, ConsumerGroup: group})
			require.NoError(t, err)
			t.Cleanup(func() { _ = sub.Close() })
			return sub
		},
		purge: func(topic string) { purgeStream(t, url, topic, group) },
	}
}

// loop is a producer and a consumer, each with a database of its own.
type loop struct {
	*testing.T
	broker   *broker
	producer *sql.DB
	consumer *sql.DB
	db       *millrace.SQLDB
	consumed *millrace.SQLDB
	box      *outbox.Box
	inbox    *dedup.SQLInbox
	topic    string
	words    string // topic of the confirmations
	// gate, if set, is what the consumer waits for.
	gate chan struct{}

	stop func()
	work sync.WaitGroup
}

func newLoop(t *testing.T, b *broker, policy outbox.Policy) *loop {
	t.Helper()
	l := &loop{T: t, broker: b, topic: b.prefix + "orders", words: b.prefix + "confirmations"}
	l.producer, l.db = l.open(testenv.Postgres(t))
	l.consumer, l.consumed = l.open(testenv.Postgres(t))
	policy.Topics, policy.After, policy.Groups = []string{l.topic}, outbox.AwaitConfirmation, []string{group}
	var err error
	l.box, err = outbox.New(l.db, outbox.Config{
		Policies: []outbox.Policy{policy}, Confirming: outbox.Confirming{Topic: l.words, PerSecond: 100_000},
	})
	require.NoError(t, err)
	require.NoError(t, l.box.Migrate(t.Context()))
	require.NoError(t, millrace.Migrate(t.Context(), l.consumed, dedup.Migrations()))
	l.inbox, err = dedup.NewInbox(l.consumed, dedup.InboxConfig{})
	require.NoError(t, err)
	_, err = l.consumer.ExecContext(t.Context(), `CREATE TABLE effects (id text NOT NULL)`)
	require.NoError(t, err)
	return l
}

func (l *loop) open(url string) (*sql.DB, *millrace.SQLDB) {
	l.Helper()
	raw, err := sql.Open("pgx", url)
	require.NoError(l, err)
	raw.SetMaxOpenConns(10)
	raw.SetMaxIdleConns(10) // handlers take and give back several at a time
	l.Cleanup(func() { _ = raw.Close() })
	return raw, millrace.SQL(raw)
}

// start runs the forwarder, the handler of the confirmations, and the consumer, which confirms with confirm.
func (l *loop) start(confirm message.Publisher) {
	l.Helper()
	ctx, cancel := context.WithCancel(l.Context())
	// Subscribed before anything is sent: a broker drops what nobody has asked for.
	producer := l.router()
	producer.AddPlugin(l.box.ConfirmationsPlugin(l.broker.sub("producer")))
	consumer := l.router()
	consumer.AddMiddleware(l.chain(confirm)...)
	consumer.AddConsumerHandler(group, l.topic, l.broker.sub(group), func(msg *message.Message) error {
		if l.gate != nil {
			select {
			case <-l.gate:
			case <-msg.Context().Done():
				return msg.Context().Err()
			}
		}
		return millrace.InTx(msg.Context(), l.consumed, func(ctx context.Context, tx *millrace.Tx) error {
			_, err := tx.ExecContext(ctx, `INSERT INTO effects (id) VALUES ($1)`, msg.UUID)
			return err
		}, millrace.Mandatory())
	})
	for _, r := range []*message.Router{producer, consumer} {
		l.work.Go(func() {
			if err := millrace.RunRouter(ctx, r); err != nil {
				l.Error(err)
			}
		})
		<-r.Running()
	}
	fwd, err := forwarder.New(l.box, l.broker.pub, forwarder.Config{
		PollInterval: 20 * time.Millisecond, MaxPollInterval: 50 * time.Millisecond,
		Lease: 2 * time.Minute, // so that a slow machine ends in good order
	})
	require.NoError(l, err)
	l.work.Go(func() {
		if err := fwd.Run(ctx); err != nil {
			l.Error(err)
		}
	})
	l.stop = func() { cancel(); l.work.Wait() }
	l.Cleanup(l.stop)
}

func (l *loop) router() *message.Router {
	r, err := message.NewRouter(message.RouterConfig{}, watermill.NopLogger{})
	require.NoError(l, err)
	return r
}

func (l *loop) chain(confirm message.Publisher) []message.HandlerMiddleware {
	l.Helper()
	c, err := middleware.Confirm(middleware.ConfirmConfig{Group: group, Publisher: confirm})
	require.NoError(l, err)
	tx, err := middleware.Transactional(l.consumed, l.inbox, middleware.TransactionalConfig{})
	require.NoError(l, err)
	return []message.HandlerMiddleware{c, tx}
}

// publish commits messages with ids from..to.
func (l *loop) publish(from, to int) {
	l.Helper()
	for ; from < to; from += 100 {
		require.NoError(l, millrace.InTx(l.Context(), l.db, func(ctx context.Context, _ *millrace.Tx) error {
			for n := from; n < min(from+100, to); n++ {
				if err := l.box.Publish(ctx, l.topic, message.NewMessage(fmt.Sprint(n), []byte("payload"))); err != nil {
					return err
				}
			}
			return nil
		}))
	}
}

func (l *loop) one(db *sql.DB, query string) (n int) {
	l.Helper()
	require.NoError(l, db.QueryRowContext(l.Context(), query).Scan(&n))
	return n
}

// finished waits until every message is done or dead: some five times as long as that takes on two cores.
func (l *loop) finished(messages int) {
	l.Helper()
	within := 5*time.Minute + time.Duration(messages)*60*time.Millisecond
	var waiting, sent, done, dead int
	l.Cleanup(func() {
		if l.Failed() {
			l.Logf("waiting %d, sent %d, done %d, dead %d of %d", waiting, sent, done, dead, messages)
		}
	})
	var counted time.Time
	testenv.Eventually(l, within, "every message is done or dead", func() bool {
		if time.Since(counted) < 100*time.Millisecond {
			return false // to count many is work for a server that has enough to do
		}
		counted = time.Now()
		require.NoError(l, l.producer.QueryRowContext(l.Context(), `SELECT (SELECT count(*) FROM millrace_outbox),
			(SELECT count(*) FROM millrace_sent WHERE state = 'sent'), (SELECT count(*) FROM millrace_sent WHERE state = 'done'),
			(SELECT count(*) FROM millrace_dead)`).Scan(&waiting, &sent, &done, &dead))
		return done+dead == messages && waiting+sent == 0
	})
}
