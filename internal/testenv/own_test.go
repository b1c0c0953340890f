package testenv_test

import (
	"context"
	"errors"
	"net"
	"net/url"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/internal/testenv"
)

// within ends a call that a frozen server never answers.
func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestOwnPostgresKeepsPortAndDataAcrossKillStopAndPause(t *testing.T) {
	s := testenv.OwnPostgres(t)
	_, err := postgresRow(t.Context(), s.URL, "CREATE TABLE x AS SELECT 'kept'::text AS a")
	require.Error(t, err) // no row
	read := func() {      // also proves that the server answers
		t.Helper()
		a, err := postgresRow(within(t, time.Minute), s.URL, "SELECT a FROM x")
		require.NoError(t, err)
		require.Equal(t, "kept", a)
	}
	read()
	s.Kill()
	s.Kill()
	_, err = postgresRow(t.Context(), s.URL, "SELECT a FROM x")
	require.Error(t, err)
	s.Start()
	s.Start()
	read()
	s.Restart()
	read()
	s.Pause()
	_, err = postgresRow(within(t, 300*time.Millisecond), s.URL, "SELECT a FROM x")
	require.ErrorIs(t, err, context.DeadlineExceeded)
	s.Resume()
	read()
	s.Pause()
	s.Kill()
	s.Start()
	read()
}

func TestOwnMariaDBKeepsPortAndDataAcrossKillStopAndPause(t *testing.T) {
	s := testenv.OwnMariaDB(t)
	_, err := openMySQL(t, s.URL).ExecContext(t.Context(), "CREATE TABLE x AS SELECT 'kept' AS a")
	require.NoError(t, err)
	read := func(d time.Duration) (a string, err error) {
		err = openMySQL(t, s.URL).QueryRowContext(within(t, d), "SELECT a FROM x").Scan(&a)
		return a, err
	}
	kept := func() {
		t.Helper()
		a, err := read(time.Minute)
		require.NoError(t, err)
		require.Equal(t, "kept", a)
	}
	s.Kill()
	_, err = read(time.Second)
	require.Error(t, err)
	s.Start()
	kept()
	s.Restart()
	kept()
	s.Pause()
	_, err = read(300 * time.Millisecond)
	require.Error(t, err)
	s.Resume()
	kept()
}

func TestOwnRedisKeepsPortAndDataAcrossKillStopAndPause(t *testing.T) {
	s := testenv.OwnRedis(t, "--appendfsync", "always")
	require.NoError(t, openRedis(t, s.URL).Set(t.Context(), "a", "kept", 0).Err())
	kept := func() {
		t.Helper()
		client := openRedis(t, s.URL)
		a, err := client.Get(within(t, time.Minute), "a").Result()
		require.NoError(t, err)
		require.Equal(t, "kept", a)
		got, err := client.ConfigGet(t.Context(), "appendfsync").Result()
		require.NoError(t, err)
		require.Equal(t, "always", got["appendfsync"])
	}
	for range 5 {
		s.Kill()
		require.Error(t, openRedis(t, s.URL).Ping(t.Context()).Err())
		s.Start()
		kept()
	}
	s.Restart()
	kept()
	s.Pause()
	require.Error(t, openRedis(t, s.URL).Ping(within(t, 300*time.Millisecond)).Err())
	s.Resume()
	kept()
}

func TestOwnRabbitMQKeepsPortAndDataAcrossKillStopAndPause(t *testing.T) {
	s := testenv.OwnRabbitMQ(t)
	publish := func(body string) {
		t.Helper()
		conn, err := amqp.Dial(s.URL)
		require.NoError(t, err)
		defer conn.Close()
		ch, err := conn.Channel()
		require.NoError(t, err)
		require.NoError(t, ch.Confirm(false))
		_, err = ch.QueueDeclare("q", true, false, false, false, amqp.Table{"x-queue-type": "quorum"})
		require.NoError(t, err)
		c, err := ch.PublishWithDeferredConfirm("", "q", true, false,
			amqp.Publishing{DeliveryMode: amqp.Persistent, Body: []byte(body)})
		require.NoError(t, err)
		ok, err := c.WaitContext(within(t, time.Minute))
		require.NoError(t, err)
		require.True(t, ok)
	}
	publish("1")
	s.Restart() // a quorum queue as young as this one does not survive Kill
	publish("2")
	s.Kill()
	_, err := amqp.Dial(s.URL)
	require.Error(t, err)
	s.Start()
	publish("3")
	s.Pause()
	_, err = amqp.DialConfig(s.URL, amqp.Config{Dial: amqp.DefaultDial(300 * time.Millisecond)})
	require.Error(t, err)
	s.Resume()
	publish("4")

	conn, err := amqp.Dial(s.URL)
	require.NoError(t, err)
	defer conn.Close()
	ch, err := conn.Channel()
	require.NoError(t, err)
	for _, want := range []string{"1", "2", "3", "4"} {
		var d amqp.Delivery
		testenv.Eventually(t, time.Minute, "message "+want, func() bool {
			var ok bool
			d, ok, err = ch.Get("q", true)
			require.NoError(t, err)
			return ok
		})
		require.Equal(t, want, string(d.Body))
	}
}

func TestAServerOfOnesOwnEndsWithItsTest(t *testing.T) {
	var host string
	t.Run("one", func(t *testing.T) {
		u, err := url.Parse(testenv.OwnRedis(t).URL)
		require.NoError(t, err)
		host = u.Host
		require.True(t, listens(host))
	})
	require.False(t, listens(host))
}

func listens(host string) bool {
	conn, err := net.DialTimeout("tcp", host, time.Second)
	if err == nil {
		_ = conn.Close()
	}
	var timeout net.Error
	return err == nil || errors.As(err, &timeout) && timeout.Timeout()
}
