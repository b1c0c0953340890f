package rediswaker_test

import (
	"bufio"
	"context"
	"database/sql"
	"fmt"
	"io"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	_ "github.com/go-sql-driver/mysql"
	_ "github.com/jackc/pgx/v5/stdlib"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/forwarder"
	"github.com/millrace-go/millrace/forwarder/rediswaker"
	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/outbox"
	"github.com/millrace-go/millrace/pgxtx"
)

func TestMain(m *testing.M) { testenv.Main(m, testenv.Role("forwarder", forwarderProcess)) }

const patience = 2 * time.Minute

func client(t testing.TB, url string) *redis.Client {
	t.Helper()
	opts, err := redis.ParseURL(url)
	require.NoError(t, err)
	c := redis.NewClient(opts)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestANoteIsHeardOnItsChannelOnly(t *testing.T) {
	t.Parallel()
	rdb := client(t, testenv.Redis(t))
	prefix := testenv.RedisPrefix(t)
	w := rediswaker.New(rdb, rediswaker.Config{Channel: prefix + "a"})
	other := rediswaker.New(rdb, rediswaker.Config{Channel: prefix + "b"})
	notes, ready := make(chan string, 10), make(chan struct{}, 10)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.Listen(ctx, func() { ready <- struct{}{} }, func(note string) { notes <- note }) }()
	receive(t, ready, "the subscription")
	require.NoError(t, other.Send(ctx, "not for it"))
	require.NoError(t, w.Send(ctx, "for it"))
	require.Equal(t, "for it", receive(t, notes, "a note"))
	cancel()
	require.ErrorIs(t, receive(t, ended, "the end"), context.Canceled)
}

func TestAListenAndASendFailWhileRedisIsDownAndWorkAgainAfterwards(t *testing.T) {
	t.Parallel()
	server := testenv.OwnRedis(t)
	w := rediswaker.New(client(t, server.URL), rediswaker.Config{})
	ready := make(chan struct{}, 10)
	ended := make(chan error, 1)
	go func() { ended <- w.Listen(t.Context(), func() { ready <- struct{}{} }, func(string) {}) }()
	receive(t, ready, "the subscription")
	server.Kill()
	require.Error(t, receive(t, ended, "the end"))
	require.Error(t, w.Send(t.Context(), "lost"))
	require.Error(t, w.Listen(t.Context(), func() {}, func(string) {}))
	server.Start()

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	notes := make(chan string, 1)
	go func() { ended <- w.Listen(ctx, func() { ready <- struct{}{} }, func(note string) { notes <- note }) }()
	receive(t, ready, "the subscription")
	require.NoError(t, w.Send(ctx, "found"))
	require.Equal(t, "found", receive(t, notes, "a note"))
	cancel()
	receive(t, ended, "the end")
}

func TestNewWithoutAClientPanics(t *testing.T) {
	t.Parallel()
	require.Panics(t, func() { rediswaker.New(nil, rediswaker.Config{}) })
}

// The forwarder in the other process polls once an hour: whatever arrives, a note has brought.
func TestAForwarderInAnotherProcessHearsOfACommitByRedisAndByNotify(t *testing.T) {
	t.Parallel()
	for name, env := range map[string]func(t *testing.T) surroundings{
		"redis on mariadb": func(t *testing.T) surroundings {
			return surroundings{"mysql", testenv.MariaDB(t), "redis", testenv.Redis(t), testenv.RedisPrefix(t)}
		},
		"notify on postgres": func(t *testing.T) surroundings {
			url := testenv.Postgres(t)
			return surroundings{"pgx", url, "notify", url, "millrace"}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := env(t)
			raw, box, closeAll, err := s.open()
			require.NoError(t, err)
			defer closeAll()
			require.NoError(t, box.Migrate(t.Context()))
			require.NoError(t, box.Check(t.Context()))

			child := testenv.Child(t, "forwarder", s.environment()...)
			out, err := child.StdoutPipe()
			require.NoError(t, err)
			require.NoError(t, child.Start())
			lines := make(chan string, 1000)
			var reader sync.WaitGroup
			reader.Go(func() {
				for in := bufio.NewScanner(out); in.Scan(); {
					lines <- in.Text()
				}
			})
			t.Cleanup(func() { _ = child.Process.Kill(); reader.Wait() })

			db := millrace.SQL(raw)
			for i := range 20 {
				id := watermill.NewUUID()
				err := millrace.InTx(t.Context(), db, func(ctx context.Context, _ *millrace.Tx) error {
					return box.Publish(ctx, "orders", message.NewMessage(id, nil))
				})
				require.NoError(t, err)
				require.Equal(t, id, receive(t, lines, fmt.Sprintf("message %d", i+1)))
			}
		})
	}
}

// surroundings are the servers that two processes share.
type surroundings struct{ driver, dsn, kind, waker, channel string }

func (s surroundings) environment() []string {
	return []string{"W_DRIVER=" + s.driver, "W_DSN=" + s.dsn, "W_KIND=" + s.kind, "W_WAKER=" + s.waker, "W_CHANNEL=" + s.channel}
}

func (s surroundings) open() (*sql.DB, *outbox.Box, func(), error) {
	raw, err := sql.Open(s.driver, s.dsn)
	if err != nil {
		return nil, nil, nil, err
	}
	var waker outbox.Waker
	var closeWaker func()
	switch s.kind {
	case "redis":
		opts, err := redis.ParseURL(s.waker)
		if err != nil {
			return nil, nil, nil, err
		}
		rdb := redis.NewClient(opts)
		waker, closeWaker = rediswaker.New(rdb, rediswaker.Config{Channel: s.channel}), func() { _ = rdb.Close() }
	default:
		w, err := pgxtx.NewWaker(s.waker, pgxtx.WakerConfig{Channel: s.channel})
		if err != nil {
			return nil, nil, nil, err
		}
		waker, closeWaker = w, func() { _ = w.Close(context.Background()) }
	}
	box, err := outbox.New(millrace.SQL(raw), outbox.Config{Waker: waker})
	return raw, box, func() { closeWaker(); _ = raw.Close() }, err
}

// forwarderProcess prints the ids that it forwards, until it is killed.
func forwarderProcess() {
	s := surroundings{os.Getenv("W_DRIVER"), os.Getenv("W_DSN"), os.Getenv("W_KIND"), os.Getenv("W_WAKER"), os.Getenv("W_CHANNEL")}
	_, box, closeAll, err := s.open()
	if err == nil {
		defer closeAll()
		var fwd *forwarder.Forwarder
		if fwd, err = forwarder.New(box, printer{os.Stdout}, forwarder.Config{PollInterval: time.Hour}); err == nil {
			err = fwd.Run(context.Background())
		}
	}
	fmt.Fprintln(os.Stderr, "forwarder process:", err)
	os.Exit(1)
}

type printer struct{ to io.Writer }

func (p printer) Publish(_ string, msgs ...*message.Message) error {
	for _, msg := range msgs {
		if _, err := fmt.Fprintln(p.to, msg.UUID); err != nil {
			return err
		}
	}
	return nil
}

func (printer) Close() error { return nil }

func receive[T any](t *testing.T, c <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatalf("waited for %s", what)
		panic("unreachable")
	}
}
