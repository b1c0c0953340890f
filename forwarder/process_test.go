package forwarder_test

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill-amqp/v3/pkg/amqp"
	"github.com/ThreeDotsLabs/watermill/message"
	amqp091 "github.com/rabbitmq/amqp091-go"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/broker/rabbitmq"
	"github.com/millrace-go/millrace/broker/redisstreams"
	"github.com/millrace-go/millrace/forwarder"
	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/outbox"
)

// forwarderProcess is a forwarder in a process of its own, until SIGTERM.
func forwarderProcess() {
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer cancel()
	if err := runProcess(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "forwarder process:", err)
		os.Exit(1)
	}
}

func runProcess(ctx context.Context) error {
	raw, err := sql.Open(os.Getenv("FW_DRIVER"), os.Getenv("FW_DSN"))
	if err != nil {
		return err
	}
	defer raw.Close()
	raw.SetMaxIdleConns(8) // the default of 2 makes it connect anew again and again
	box, err := outbox.New(millrace.SQL(raw), outbox.Config{})
	if err != nil {
		return err
	}
	pub, err := publisherAt(os.Getenv("FW_BROKER"))
	if err != nil {
		return err
	}
	defer pub.Close()
	lease, err := time.ParseDuration(os.Getenv("FW_LEASE"))
	if err != nil {
		return err
	}
	cfg := processConfig
	cfg.Lease = lease
	if os.Getenv("FW_LOG") != "" {
		cfg.Logger = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	fwd, err := forwarder.New(box, pub, cfg)
	if err != nil {
		return err
	}
	return fwd.Run(ctx)
}

// processConfig has small limits: an in-flight window that a few thousand messages fill often.
var processConfig = forwarder.Config{
	PollInterval: 20 * time.Millisecond, BatchRows: 150, Batches: 2, ReadAheadRows: 450,
}

// window is what may be delivered twice for each process killed: all that it had read.
const window = 450

func publisherAt(broker string) (message.Publisher, error) {
	switch {
	case strings.HasPrefix(broker, "amqp:"):
		return rabbitmq.NewPublisher(rabbitmq.Config{URL: broker, AMQP: amqp.NewDurableQueueConfig("")})
	case strings.HasPrefix(broker, "redis:"):
		url, prefix, _ := strings.Cut(broker, " ")
		pub, err := redisstreams.NewPublisher(redisstreams.Config{URL: url})
		return prefixed{pub, prefix}, err
	}
	return record{broker}, nil
}

// prefixed gives topics a prefix: the Redis of the tests is shared.
type prefixed struct {
	*redisstreams.Publisher
	prefix string
}

func (p prefixed) PublishBatch(ctx context.Context, topics []string, msgs []*message.Message) []error {
	own := make([]string, len(topics))
	for i, topic := range topics {
		own[i] = p.prefix + topic
	}
	return p.Publisher.PublishBatch(ctx, own, msgs)
}

// spawn starts a forwarder in a process of its own. Fault arms it to die.
func (s *stage) spawn(broker string, lease time.Duration, fault string) *exec.Cmd {
	s.Helper()
	cmd := testenv.Child(s, "forwarder", "FW_DRIVER="+s.driver, "FW_DSN="+s.dsn, "FW_BROKER="+broker,
		"FW_LEASE="+lease.String(), "MILLRACE_FAULT="+fault)
	require.NoError(s, cmd.Start())
	return cmd
}

// died waits until a process was killed, and reports whether that was by SIGKILL.
func died(t testing.TB, cmd *exec.Cmd, within time.Duration) bool {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case <-done:
	case <-time.After(within):
		_ = cmd.Process.Kill()
		<-done
		t.Fatalf("the process did not reach its fault point within %v", within)
	}
	status := cmd.ProcessState.Sys().(syscall.WaitStatus)
	return status.Signaled() && status.Signal() == syscall.SIGKILL
}

// far is a broker whose messages a test can read back.
type far struct {
	name string
	open func(t testing.TB) (address string, ids func() []string)
}

var recording = far{"recording", func(t testing.TB) (string, func() []string) {
	r := record{t.TempDir() + "/got"}
	return r.path, func() []string { return r.ids(t) }
}}

var rabbit = far{"rabbitmq", func(t testing.TB) (string, func() []string) {
	url := testenv.RabbitMQ(t)
	return url, func() []string {
		conn, err := amqp091.Dial(url)
		require.NoError(t, err)
		defer conn.Close()
		ch, err := conn.Channel()
		require.NoError(t, err)
		q, err := ch.QueueDeclarePassive("orders", true, false, false, false, nil)
		require.NoError(t, err)
		in, err := ch.Consume("orders", "", true, false, false, false, nil)
		require.NoError(t, err)
		var ids []string
		for range q.Messages {
			select {
			case d := <-in:
				ids = append(ids, fmt.Sprint(d.Headers["_watermill_message_uuid"]))
			case <-time.After(10 * time.Second):
				t.Fatalf("%d of %d messages came out of the queue", len(ids), q.Messages)
			}
		}
		return ids
	}
}}

var redisStream = far{"redis streams", func(t testing.TB) (string, func() []string) {
	url, prefix := testenv.Redis(t), testenv.RedisPrefix(t)
	return url + " " + prefix, func() []string {
		opt, err := redis.ParseURL(url)
		require.NoError(t, err)
		rdb := redis.NewClient(opt)
		defer rdb.Close()
		entries, err := rdb.XRange(context.WithoutCancel(t.Context()), prefix+"orders", "-", "+").Result()
		require.NoError(t, err)
		var ids []string
		for _, e := range entries {
			ids = append(ids, fmt.Sprint(e.Values["_watermill_message_uuid"]))
		}
		return ids
	}
}}
