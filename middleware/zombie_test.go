package middleware_test

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/dedup"
	"github.com/millrace-go/millrace/dedup/redisdedup"
	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/middleware"
)

func zombieConfig() middleware.IdempotentConfig {
	return middleware.IdempotentConfig{Consumer: "c", Lease: 6 * time.Second, StoreTimeout: 2 * time.Second, BusyWait: time.Minute, DoneTTL: time.Hour}
}

// zombie is a process that is frozen in its handler, before the effect, and then goes on as if nothing had
// happened, without a look at its context.
func zombie() {
	opts, err := redis.ParseURL(os.Getenv("REDIS"))
	check(err)
	raw, err := sql.Open("pgx", os.Getenv("DSN"))
	check(err)
	d := &database{raw: raw, db: millrace.SQL(raw), mark: "$1"}
	d.inbox, err = dedup.NewInbox(d.db, dedup.InboxConfig{})
	check(err)
	store := redisdedup.New(redis.NewClient(opts), redisdedup.Config{Namespace: os.Getenv("NAMESPACE")})
	idempotent, err := middleware.Idempotent(store, zombieConfig())
	check(err)
	transactional, err := middleware.Transactional(d.db, d.inbox, middleware.TransactionalConfig{Consumer: "c"})
	check(err)
	handle := chain(func(msg *message.Message) ([]*message.Message, error) {
		if claim, ok := middleware.Fence(msg.Context()); ok {
			fmt.Println("begun", claim.Fence)
		}
		_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
		_, err := transactional(func(msg *message.Message) ([]*message.Message, error) {
			return nil, d.effect(msg.Context(), msg.UUID)
		})(message.NewMessage(msg.UUID, msg.Payload))
		fmt.Println("effect", err)
		return []*message.Message{message.NewMessage("x", []byte("of the zombie"))}, nil
	}, idempotent)
	out, err := handle(delivery(context.Background(), "m", "p"))
	fmt.Println("ended", len(out), errors.Is(err, middleware.ErrLeaseLost))
}

// A process is frozen past its lease, another takes over, and then the first one goes on: it is told that it
// lost, sends nothing, and with the inbox there is one effect.
func TestAProcessThatIsFrozenPastItsLeaseIsTakenOverAndHasNoSecondEffect(t *testing.T) {
	t.Parallel()
	url, namespace := testenv.Redis(t), testenv.RedisPrefix(t)+"zombie"
	dsn := testenv.Postgres(t)
	d := openDatabase(t, "pgx", dsn)
	cmd := testenv.Child(t, "zombie", "REDIS="+url, "NAMESPACE="+namespace, "DSN="+dsn)
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	pipe, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	said := bufio.NewReader(pipe)
	hear := func() string {
		line, err := said.ReadString('\n')
		require.NoError(t, err)
		return line
	}
	require.Equal(t, "begun 1\n", hear())
	require.NoError(t, cmd.Process.Signal(syscall.SIGSTOP))

	store := redisdedup.New(redisClient(t, url), redisdedup.Config{Namespace: namespace})
	var fence int64
	successor := chain(func(msg *message.Message) ([]*message.Message, error) {
		claim, _ := middleware.Fence(msg.Context())
		fence = claim.Fence
		return []*message.Message{message.NewMessage("x", []byte("of the successor"))}, d.effect(msg.Context(), msg.UUID)
	}, must(t)(middleware.Idempotent(store, middleware.IdempotentConfig{Consumer: "c", BusyWait: 2 * time.Minute})), inboxOnly(t, d))
	out, err := successor(delivery(t.Context(), "m", "p")) // waits for the end of the lease
	require.NoError(t, err)
	require.EqualValues(t, 2, fence)
	require.Len(t, out, 1)

	require.NoError(t, cmd.Process.Signal(syscall.SIGCONT))
	_, err = fmt.Fprintln(in, "go on")
	require.NoError(t, err)
	require.Equal(t, "effect <nil>\n", hear(), "the inbox knows the message: nothing happens")
	require.Equal(t, "ended 0 true\n", hear(), "its output is discarded, and it knows that it lost")
	require.NoError(t, cmd.Wait())
	require.Equal(t, 1, d.count(t, `SELECT count(*) FROM effects`))
	again, err := successor(delivery(t.Context(), "m", "p"))
	require.NoError(t, err)
	require.Len(t, again, 1)
	require.Equal(t, "of the successor", string(again[0].Payload))
}

// inboxOnly records the message and the handler's effect together, and lets returned messages through.
func inboxOnly(t testing.TB, d *database) message.HandlerMiddleware {
	m := must(t)(middleware.Transactional(d.db, d.inbox, middleware.TransactionalConfig{Consumer: "c"}))
	return func(next message.HandlerFunc) message.HandlerFunc {
		return func(msg *message.Message) (out []*message.Message, err error) {
			_, err = m(func(msg *message.Message) ([]*message.Message, error) {
				out, err = next(msg)
				return nil, err
			})(msg)
			return out, err
		}
	}
}

// Two hundred copies of one message come at once to twenty replicas: one effect, and every copy is
// acknowledged in the end.
func TestTwoHundredCopiesAtTwentyReplicasHaveOneEffect(t *testing.T) {
	t.Parallel()
	const copies, replicas = 200, 20
	run := func(t *testing.T, replica func(i int) message.HandlerFunc) {
		handlers := make([]message.HandlerFunc, replicas)
		for i := range handlers {
			handlers[i] = replica(i)
		}
		var wg sync.WaitGroup
		for i := range copies {
			wg.Go(func() {
				for t.Context().Err() == nil {
					if _, err := handlers[i%replicas](delivery(context.Background(), "m", "p")); err == nil {
						return
					}
				}
			})
		}
		wg.Wait()
	}
	t.Run("redis", func(t *testing.T) {
		t.Parallel()
		prefix := testenv.RedisPrefix(t)
		var mu sync.Mutex
		effects := 0
		run(t, func(int) message.HandlerFunc {
			store := redisdedup.New(redisClient(t, testenv.Redis(t)), redisdedup.Config{Namespace: prefix + "crowd"})
			return chain(func(*message.Message) ([]*message.Message, error) {
				mu.Lock()
				defer mu.Unlock()
				effects++
				return nil, nil
			}, must(t)(middleware.Idempotent(store, middleware.IdempotentConfig{Consumer: "c"})))
		})
		require.Equal(t, 1, effects)
	})
	for name, driver := range map[string]string{"postgres": "pgx", "mariadb": "mysql"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dsn := map[string]func(testing.TB) string{"pgx": testenv.Postgres, "mysql": testenv.MariaDB}[driver](t)
			d := openDatabase(t, driver, dsn)
			run(t, func(int) message.HandlerFunc {
				raw, err := sql.Open(driver, dsn)
				require.NoError(t, err)
				raw.SetMaxOpenConns(2)
				t.Cleanup(func() { _ = raw.Close() })
				r := &database{raw: raw, db: millrace.SQL(raw), mark: d.mark}
				r.inbox, err = dedup.NewInbox(r.db, dedup.InboxConfig{})
				require.NoError(t, err)
				return chain(func(msg *message.Message) ([]*message.Message, error) { return nil, r.effect(msg.Context(), msg.UUID) },
					must(t)(middleware.Transactional(r.db, r.inbox, middleware.TransactionalConfig{Consumer: "c"})))
			})
			require.Equal(t, 1, d.count(t, `SELECT count(*) FROM effects`))
			require.Equal(t, 1, d.count(t, `SELECT count(*) FROM millrace_inbox`))
		})
	}
}

// At these levels a copy that arrives while the message is handled fails with a serialization error. It is
// tried again, and then it is a duplicate.
func TestTransactionalHasOneEffectAtStricterIsolationLevels(t *testing.T) {
	t.Parallel()
	for name, driver := range map[string]string{"postgres": "pgx", "mariadb": "mysql"} {
		for _, level := range []sql.IsolationLevel{sql.LevelRepeatableRead, sql.LevelSerializable} {
			t.Run(name+" "+level.String(), func(t *testing.T) {
				t.Parallel()
				dsn := map[string]func(testing.TB) string{"pgx": testenv.Postgres, "mysql": testenv.MariaDB}[driver](t)
				d := openDatabase(t, driver, dsn)
				h := must(t)(middleware.Transactional(d.db, d.inbox, middleware.TransactionalConfig{
					Consumer: "c", Options: []millrace.TxOption{millrace.Isolation(level)},
				}))(func(msg *message.Message) ([]*message.Message, error) { return nil, d.effect(msg.Context(), msg.UUID) })
				const messages = 20
				var wg sync.WaitGroup
				for range 4 {
					wg.Go(func() { deliverUntilDone(t, h, "m", messages, nil) })
				}
				wg.Wait()
				require.Equal(t, messages, d.count(t, `SELECT count(*) FROM effects`))
				require.Equal(t, messages, d.count(t, `SELECT count(*) FROM millrace_inbox`))
			})
		}
	}
}

func TestAClaimThatCannotBeGivenBackRunsOut(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var c *consumer
		c = newConsumer(t, middleware.IdempotentConfig{}, func(*message.Message) ([]*message.Message, error) {
			if c.calls.Load() == 1 {
				return nil, errHandler
			}
			return nil, nil
		})
		c.store.set("release", true)
		require.ErrorIs(t, c.deliver(t.Context(), "m"), errHandler)
		begin := time.Now()
		for {
			err := c.deliver(t.Context(), "m")
			if err == nil {
				break
			}
			require.ErrorIs(t, err, middleware.ErrInProgress)
		}
		require.InDelta(t, 30*time.Second, time.Since(begin), float64(3*time.Second), "the lease")
		require.EqualValues(t, 2, c.calls.Load())
	})
}
