package delayed_test

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/broker/rabbitmq"
	"github.com/millrace-go/millrace/broker/redisstreams"
	"github.com/millrace-go/millrace/dedup/redisdedup"
	"github.com/millrace-go/millrace/delayed"
	"github.com/millrace-go/millrace/internal/fault"
	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/middleware"
	"github.com/millrace-go/millrace/store"
	"github.com/millrace-go/millrace/store/sqlstore"
)

func must(err error) {
	if err != nil {
		panic(err)
	}
}

// killedLease is that of claims and of stored messages: so long does a killed process hold things up. A process
// that is so slow that it loses a lease spoils the count: an attempt that never ran.
const killedLease = 6 * time.Second

// killedConsumer is a process that handles the topic, always fails, and notes each call in a file. What
// kills it is in its environment.
func killedConsumer() {
	var attempts int
	_, err := fmt.Sscan(os.Getenv("ATTEMPTS"), &attempts)
	must(err)
	sqlDB, err := sql.Open(os.Getenv("DRIVER"), os.Getenv("DSN"))
	must(err)
	st, err := sqlstore.New(millrace.SQL(sqlDB))
	must(err)
	opts, err := redis.ParseURL(os.Getenv("REDIS"))
	must(err)
	rdb := redis.NewClient(opts)
	chain, err := middleware.Recommended(middleware.Config{
		Dedup:      redisdedup.New(rdb, redisdedup.Config{Namespace: os.Getenv("PREFIX")}),
		Idempotent: middleware.IdempotentConfig{Lease: killedLease, BusyWait: 3 * killedLease, MaxClaims: 1000},
		Retry:      middleware.RetryConfig{MaxAttempts: 1},
		Timeout:    killedLease / 2, // less than the lease
		Delayed:    middleware.DelayedConfig{Store: st, MaxAttempts: attempts, Delays: []time.Duration{time.Millisecond}, Timeout: time.Minute},
		Poison:     middleware.PoisonConfig{Store: st},
	})
	must(err)
	sub, err := killedSubscriber(os.Getenv("BROKER"))
	must(err)
	sub, err = delayed.Subscriber(sub, st, delayed.Config{Handler: "billing", Lease: killedLease, Poll: 20 * time.Millisecond})
	must(err)
	calls, err := os.OpenFile(os.Getenv("CALLS"), os.O_APPEND|os.O_WRONLY, 0)
	must(err)

	r, err := message.NewRouter(message.RouterConfig{}, watermill.NopLogger{})
	must(err)
	r.AddMiddleware(chain...)
	r.AddConsumerHandler("billing", os.Getenv("TOPIC"), sub, func(msg *message.Message) error {
		_, err := fmt.Fprintln(calls, middleware.Attempt(msg.Context()))
		must(err)
		return errHandler
	})
	must(r.Run(context.Background()))
}

func killedSubscriber(url string) (message.Subscriber, error) {
	if strings.HasPrefix(url, "amqp") {
		return rabbitmq.NewSubscriber(rabbitmq.Config{URL: url, ConsumerGroup: "billing"})
	}
	return redisstreams.NewSubscriber(redisstreams.Config{URL: url, ConsumerGroup: "billing", MaxIdle: 500 * time.Millisecond})
}

// A consumer is killed each time between storing the message and acknowledging it, then between giving it
// up and acknowledging it, then before the stored copy is forgotten: the handler is called exactly as
// often as configured, and the message is dead once.
func TestKilledBetweenStoreAndAckTheHandlerIsCalledExactlyAsOftenAsConfigured(t *testing.T) {
	t.Parallel()
	attempts := 3
	if testenv.Full() {
		attempts = 21
	}
	for name, setup := range map[string]func(t *testing.T) (broker, driver, dsn string){
		"RabbitMQ, MariaDB":         func(t *testing.T) (string, string, string) { return testenv.RabbitMQ(t), "mysql", testenv.MariaDB(t) },
		"Redis Streams, PostgreSQL": func(t *testing.T) (string, string, string) { return testenv.Redis(t), "pgx", testenv.Postgres(t) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			broker, driver, dsn := setup(t)
			st := openStore(t, driver, dsn)
			prefix := testenv.RedisPrefix(t)
			topic := prefix + "orders"
			publishTo(t, broker, topic)
			file := filepath.Join(t.TempDir(), "calls")
			require.NoError(t, os.WriteFile(file, nil, 0o600))
			env := []string{"BROKER=" + broker, "DRIVER=" + driver, "DSN=" + dsn, "REDIS=" + testenv.Redis(t), "PREFIX=" + prefix + "dedup",
				"TOPIC=" + topic, "CALLS=" + file, fmt.Sprint("ATTEMPTS=", attempts)}

			var points []string
			for range attempts - 1 {
				points = append(points, "middleware.deferred")
			}
			for life, point := range append(points, "middleware.poisoned", "delayed.settle") {
				cmd := testenv.Child(t, "consumer that is killed", append(env, fault.Variable+"="+point+":1:"+fault.Kill)...)
				require.NoError(t, cmd.Start())
				ended := make(chan error, 1)
				go func() { ended <- cmd.Wait() }()
				select {
				case err := <-ended:
					require.ErrorContains(t, err, "killed", "life %d", life)
				case <-time.After(4 * time.Minute):
					t.Fatalf("life %d: never came by %s: %+v", life, point, stats(t, st, "billing"))
				}
			}
			cmd := testenv.Child(t, "consumer that is killed", env...)
			require.NoError(t, cmd.Start())
			testenv.Eventually(t, 2*time.Minute, "the message is dead", func() bool {
				return stats(t, st, "billing") == store.Stats{Dead: 1}
			})
			require.NoError(t, cmd.Process.Kill())
			_ = cmd.Wait()

			raw, err := os.ReadFile(file)
			require.NoError(t, err)
			var want strings.Builder
			for n := 1; n <= attempts; n++ {
				fmt.Fprintln(&want, n)
			}
			require.Equal(t, want.String(), string(raw))
			letters, err := st.List(t.Context(), store.Filter{Group: "billing"}, 0, 10)
			require.NoError(t, err)
			require.Len(t, letters, 1)
			require.Equal(t, attempts, letters[0].Attempts)
			l, err := st.Get(t.Context(), "billing", letters[0].ID)
			require.NoError(t, err)
			require.Equal(t, order("m", "").Payload, message.Payload(l.Payload))
		})
	}
}

func publishTo(t *testing.T, broker, topic string) {
	t.Helper()
	var pub message.Publisher
	var err error
	if strings.HasPrefix(broker, "amqp") {
		pub, err = rabbitmq.NewPublisher(rabbitmq.Config{URL: broker})
	} else {
		pub, err = redisstreams.NewPublisher(redisstreams.Config{URL: broker})
	}
	require.NoError(t, err)
	sub, err := killedSubscriber(broker)
	require.NoError(t, err)
	require.NoError(t, sub.(message.SubscribeInitializer).SubscribeInitialize(topic))
	require.NoError(t, pub.Publish(topic, order("m", "")))
	require.NoError(t, sub.Close())
	require.NoError(t, pub.Close())
}
