package rabbitmq

import (
	"bytes"
	"context"
	"errors"
	"net"
	"strconv"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// wire is what a socket writes to.
type wire struct {
	net.Conn
	writes   [][]byte
	deadline time.Time
	fail     error
	closed   bool
}

func (w *wire) Write(p []byte) (int, error) {
	if w.fail != nil {
		return 0, w.fail
	}
	w.writes = append(w.writes, bytes.Clone(p))
	return len(p), nil
}

func (w *wire) SetWriteDeadline(t time.Time) error {
	w.deadline = t
	return nil
}

func (w *wire) Close() error {
	w.closed = true
	return nil
}

func TestTheMessagesOfABatchGoOutTogetherAndInOrder(t *testing.T) {
	t.Parallel()
	to := &wire{}
	s := &socket{Conn: to, timeout: time.Hour}
	var want []byte
	write := func(p []byte) {
		n, err := s.Write(p)
		require.NoError(t, err)
		require.Equal(t, len(p), n)
		want = append(want, p...)
	}
	write([]byte("at once"))
	require.Len(t, to.writes, 1)

	s.cork()
	s.cork() // another batch
	for i := range 10 {
		write([]byte(strconv.Itoa(i)))
	}
	require.Len(t, to.writes, 1)
	s.uncork()
	require.Len(t, to.writes, 2, "its messages do not wait for those of the other")
	write([]byte("held"))
	write(bytes.Repeat([]byte("x"), heldBytes)) // more than is held back
	require.Equal(t, string(want), string(bytes.Join(to.writes, nil)))
	write([]byte("rest"))
	s.uncork()
	write([]byte("at once again"))
	require.Equal(t, string(want), string(bytes.Join(to.writes, nil)))
	require.Positive(t, time.Until(to.deadline))
}

func TestWhatIsHeldBackEndsTheConnectionWhenItCannotBeSent(t *testing.T) {
	t.Parallel()
	to := &wire{fail: errors.New("broken")}
	s := &socket{Conn: to, timeout: time.Hour}
	_, err := s.Write([]byte("x"))
	require.ErrorIs(t, err, to.fail)

	s.cork()
	_, err = s.Write([]byte("held"))
	require.NoError(t, err)
	_, err = s.Write(bytes.Repeat([]byte("x"), heldBytes))
	require.ErrorIs(t, err, to.fail, "what cannot be held is not sent either")
	s.uncork()
	require.False(t, to.closed, "whoever wrote was told")

	s.cork()
	_, err = s.Write([]byte("held"))
	require.NoError(t, err)
	s.uncork()
	require.True(t, to.closed)
}

func TestABatchIsGivenUpWhenNothingHappensForLong(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const timeout = 10 * time.Second
		conn := &connection{config: Config{Timeout: timeout}, blocked: make(chan struct{})}
		var happened atomic.Int64
		p := newPatience(t.Context(), conn, func() int { return int(happened.Load()) })
		defer p.end()
		never := make(chan struct{})
		go func() {
			for range 10 { // slowly, but it happens
				<-time.After(timeout - time.Second)
				happened.Add(1)
			}
		}()
		start := time.Now()
		_, err := await(p, never)
		require.ErrorIs(t, err, ErrUnconfirmed)
		quiet := time.Since(start) - 10*(timeout-time.Second)
		require.GreaterOrEqual(t, quiet, timeout)
		require.LessOrEqual(t, quiet, timeout+timeout/ticks)
	})
}

func TestABatchEndsWithItsContextAndWhenTheBrokerBlocks(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		conn := &connection{config: Config{Timeout: time.Hour}, blocked: make(chan struct{})}
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute, errors.New("no time left"))
		defer cancel()
		p := newPatience(ctx, conn, func() int { return 0 })
		defer p.end()
		never := make(chan struct{})
		_, err := await(p, never)
		require.ErrorContains(t, err, "no time left")

		p = newPatience(t.Context(), conn, func() int { return 0 })
		defer p.end()
		time.AfterFunc(time.Minute, func() { close(conn.blocked) })
		_, err = await(p, never)
		require.ErrorIs(t, err, ErrBlocked)
	})
}
