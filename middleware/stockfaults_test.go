package middleware_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	wmsql "github.com/ThreeDotsLabs/watermill-sql/v4/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/message"
	stock "github.com/ThreeDotsLabs/watermill/message/router/middleware"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/dedup"
	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/middleware"
)

// A promise that we keep and a stock piece does not. Broken says how it is broken, nil that it is kept.
type stockFault struct {
	promise     string
	broken      func(t *testing.T, m message.HandlerMiddleware) error
	ours, stock func(t *testing.T) message.HandlerMiddleware
}

func ourIdempotent(t *testing.T) message.HandlerMiddleware {
	return must(t)(middleware.Idempotent(new(dedup.Memory), middleware.IdempotentConfig{Consumer: "c"}))
}

// once is a repository of the stock Deduplicator that starts no goroutine.
type once map[string]bool

func (o once) IsDuplicate(_ context.Context, key string) (bool, error) {
	seen := o[key]
	o[key] = true
	return seen, nil
}

func stockDeduplicator(*testing.T) message.HandlerMiddleware {
	return (&stock.Deduplicator{Repository: once{}}).Middleware
}

// obedient is a publisher that keeps to the context of its messages.
type obedient struct{ got int }

func (p *obedient) Publish(_ string, msgs ...*message.Message) error {
	for _, m := range msgs {
		if err := m.Context().Err(); err != nil {
			return err
		}
		p.got++
	}
	return nil
}

func (p *obedient) Close() error { return nil }

var stockFaults = []stockFault{
	{
		promise: "a message whose handler failed is handled when it comes again",
		ours:    ourIdempotent, stock: stockDeduplicator,
		broken: func(t *testing.T, m message.HandlerMiddleware) error {
			calls := 0
			h := m(func(*message.Message) ([]*message.Message, error) {
				if calls++; calls == 1 {
					return nil, errHandler
				}
				return nil, nil
			})
			for range 2 {
				_, _ = h(delivery(t.Context(), "m", "p"))
			}
			if calls != 2 {
				return fmt.Errorf("handler called %d times", calls)
			}
			return nil
		},
	},
	{
		promise: "messages of equal or similar contents are messages of their own",
		ours:    ourIdempotent, stock: stockDeduplicator,
		broken: func(t *testing.T, m message.HandlerMiddleware) error {
			calls := 0
			h := m(func(*message.Message) ([]*message.Message, error) { calls++; return nil, nil })
			const n = 2000
			for i := range n {
				_, err := h(delivery(t.Context(), fmt.Sprint("id", i), fmt.Sprintf(`{"id":%d}`, i/2)))
				require.NoError(t, err)
			}
			if calls != n {
				return fmt.Errorf("%d of %d messages were handled", calls, n)
			}
			return nil
		},
	},
	{
		promise: "a message that takes too long reaches the poison queue",
		ours: func(t *testing.T) message.HandlerMiddleware {
			return must(t)(middleware.Timeout(time.Millisecond))
		},
		stock: func(*testing.T) message.HandlerMiddleware { return stock.Timeout(time.Millisecond) },
		broken: func(t *testing.T, timeout message.HandlerMiddleware) error {
			dead := &obedient{}
			poison := must(t)(middleware.PoisonQueue(middleware.PoisonConfig{Publisher: dead, Topic: "dead"}))
			// The stock pieces together: it takes both to lose the message.
			if _, ours := timeoutOf(t, timeout); !ours {
				var err error
				poison, err = stock.PoisonQueue(dead, "dead")
				require.NoError(t, err)
			}
			_, err := chain(func(msg *message.Message) ([]*message.Message, error) {
				<-msg.Context().Done()
				return nil, msg.Context().Err()
			}, poison, timeout)(delivery(t.Context(), "m", "p"))
			if err != nil || dead.got != 1 {
				return fmt.Errorf("%d messages in the poison queue: %w", dead.got, err)
			}
			return nil
		},
	},
	{
		promise: "a retry waits no longer than configured, whatever rules it has",
		ours: func(t *testing.T) message.HandlerMiddleware {
			return must(t)(middleware.Retry(middleware.RetryConfig{MaxAttempts: 5, InitialDelay: 20 * time.Millisecond}))
		},
		stock: func(*testing.T) message.HandlerMiddleware {
			return stock.Retry{
				MaxRetries: 4, InitialInterval: 20 * time.Millisecond, MaxInterval: time.Hour, Multiplier: 2,
				ShouldRetry: func(stock.RetryParams) bool { return true },
				OnRetryHook: func(int, time.Duration) {},
			}.Middleware
		},
		broken: func(t *testing.T, m message.HandlerMiddleware) (broken error) {
			synctest.Test(t, func(t *testing.T) {
				last, calls := time.Now(), 0
				h := m(func(*message.Message) ([]*message.Message, error) {
					most := 20 * time.Millisecond << max(calls-1, 0)
					if waited := time.Since(last); calls > 0 && waited > most {
						broken = errors.Join(broken, fmt.Errorf("wait %d: %s, more than %s", calls, waited, most))
					}
					calls++
					last = time.Now()
					return nil, errHandler
				})
				_, err := h(delivery(t.Context(), "m", "p"))
				require.ErrorIs(t, err, errHandler)
				require.Equal(t, 5, calls)
			})
			return broken
		},
	},
}

// timeoutOf tells ours from the stock piece by what it does: ours gives the message its context back.
func timeoutOf(t *testing.T, timeout message.HandlerMiddleware) (ctx context.Context, ours bool) {
	msg := delivery(t.Context(), "x", "p")
	_, _ = timeout(succeed)(msg)
	return msg.Context(), msg.Context() == t.Context()
}

// The stock pieces run in the full run alone: when one of these fails there, upstream has mended it, and the
// documentation is to be changed.
func TestFaultsOfTheStockPiecesAreNotOurs(t *testing.T) {
	t.Parallel()
	for _, f := range stockFaults {
		t.Run(f.promise, func(t *testing.T) {
			t.Parallel()
			require.NoError(t, f.broken(t, f.ours(t)))
			if testenv.Full() {
				require.Error(t, f.broken(t, f.stock(t)), "the stock piece keeps this promise now")
			}
		})
	}
}

// mortal is a subscriber whose subscription ends by itself.
type mortal struct{}

func (mortal) Subscribe(context.Context, string) (<-chan *message.Message, error) {
	out := make(chan *message.Message)
	close(out)
	return out, nil
}

func (mortal) Close() error { return nil }

// When a subscription dies, one that is not told goes on without its messages.
func TestTheDeathOfASubscriptionIsToldOtherThanByTheStockRouter(t *testing.T) {
	t.Parallel()
	run := func(t *testing.T, run func(context.Context, *message.Router) error) error {
		r := newRouter(t)
		r.AddConsumerHandler("billing", "orders", mortal{}, func(*message.Message) error { return nil })
		return run(t.Context(), r)
	}
	require.ErrorIs(t, run(t, millrace.RunRouter), millrace.ErrSubscriptionEnded)
	if testenv.Full() {
		err := run(t, func(ctx context.Context, r *message.Router) error { return r.Run(ctx) })
		require.NoError(t, err, "the stock router keeps this promise now")
	}
}

// The stock SQL subscriber hands its transaction to the handler and says that a nack rolls it back. Ours is
// Transactional, which does.
func TestWhatAFailedAttemptWroteIsRolledBackOtherThanWithTheStockSubscriber(t *testing.T) {
	t.Parallel()
	const failures = 2
	t.Run("ours", func(t *testing.T) {
		t.Parallel()
		d := openDatabase(t, "pgx", testenv.Postgres(t))
		calls := 0
		h := must(t)(middleware.Transactional(d.db, d.inbox, middleware.TransactionalConfig{Consumer: "c"}))(
			func(msg *message.Message) ([]*message.Message, error) {
				if err := d.effect(msg.Context(), msg.UUID); err != nil {
					return nil, err
				}
				if calls++; calls <= failures {
					return nil, errHandler
				}
				return nil, nil
			})
		deliverUntilDone(t, h, "m", 1, nil)
		require.Equal(t, 1, d.count(t, `SELECT count(*) FROM effects`))
	})
	if !testenv.Full() {
		return
	}
	t.Run("stock", func(t *testing.T) {
		t.Parallel()
		d := openDatabase(t, "pgx", testenv.Postgres(t))
		pub, err := wmsql.NewPublisher(wmsql.BeginnerFromStdSQL(d.raw), wmsql.PublisherConfig{
			SchemaAdapter: wmsql.DefaultPostgreSQLSchema{}, AutoInitializeSchema: true,
		}, watermill.NopLogger{})
		require.NoError(t, err)
		sub, err := wmsql.NewSubscriber(wmsql.BeginnerFromStdSQL(d.raw), wmsql.SubscriberConfig{
			ConsumerGroup: "g", SchemaAdapter: wmsql.DefaultPostgreSQLSchema{}, OffsetsAdapter: wmsql.DefaultPostgreSQLOffsetsAdapter{},
			InitializeSchema: true, PollInterval: 10 * time.Millisecond, ResendInterval: time.Millisecond,
		}, watermill.NopLogger{})
		require.NoError(t, err)
		t.Cleanup(func() { _ = sub.Close() })
		out, err := sub.Subscribe(t.Context(), "orders")
		require.NoError(t, err)
		require.NoError(t, pub.Publish("orders", message.NewMessage(watermill.NewUUID(), []byte(`{}`))))
		for call := 1; call <= failures+1; call++ {
			msg := <-out
			tx, ok := wmsql.TxFromContext(msg.Context())
			require.True(t, ok)
			_, err := tx.ExecContext(t.Context(), `INSERT INTO effects (message_id) VALUES ($1)`, msg.UUID)
			require.NoError(t, err)
			if call <= failures {
				msg.Nack()
			} else {
				msg.Ack()
			}
		}
		testenv.Eventually(t, time.Minute, "its commit", func() bool { return d.count(t, `SELECT count(*) FROM effects`) > 0 })
		require.Equal(t, failures+1, d.count(t, `SELECT count(*) FROM effects`), "the stock subscriber keeps this promise now")
	})
}
