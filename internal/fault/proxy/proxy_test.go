package proxy_test

import (
	"bufio"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/millrace-go/millrace/internal/fault/proxy"
	"github.com/millrace-go/millrace/internal/testenv/port"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// echo is a server that answers each line with itself, and counts lines.
type echo struct {
	addr  string
	lines atomic.Int64
}

func newEcho(t *testing.T) *echo {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	e := &echo{addr: ln.Addr().String()}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go e.serve(conn)
		}
	}()
	t.Cleanup(func() { _ = ln.Close(); <-done })
	return e
}

func (e *echo) serve(conn net.Conn) {
	defer conn.Close()
	for lines := bufio.NewReader(conn); ; {
		line, err := lines.ReadString('\n')
		if err != nil {
			return
		}
		e.lines.Add(1)
		if _, err := io.WriteString(conn, line); err != nil {
			return
		}
	}
}

type client struct {
	net.Conn
	in *bufio.Reader
}

func dial(t *testing.T, addr string) *client {
	conn, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return &client{Conn: conn, in: bufio.NewReader(conn)}
}

func (c *client) say(t *testing.T, line string) {
	_, err := io.WriteString(c, line+"\n")
	require.NoError(t, err)
}

func (c *client) hear(t *testing.T) (string, error) {
	require.NoError(t, c.SetReadDeadline(time.Now().Add(time.Minute)))
	line, err := c.in.ReadString('\n')
	return strings.TrimSuffix(line, "\n"), err
}

func (c *client) hearsNothing(t *testing.T) {
	require.NoError(t, c.SetReadDeadline(time.Now().Add(100*time.Millisecond)))
	_, err := c.in.ReadString('\n')
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
}

func (c *client) expect(t *testing.T, line string) {
	got, err := c.hear(t)
	require.NoError(t, err)
	require.Equal(t, line, got)
}

func (c *client) expectCut(t *testing.T) {
	_, err := c.hear(t)
	require.Error(t, err)
	require.NotErrorIs(t, err, os.ErrDeadlineExceeded)
}

func eventually(t *testing.T, what string, cond func() bool) {
	require.Eventually(t, cond, time.Minute, 5*time.Millisecond, what)
}

func TestTrafficPassesBothWays(t *testing.T) {
	c := dial(t, proxy.New(t, newEcho(t).addr).Addr)
	long := strings.Repeat("x", 1<<20)
	go c.say(t, long)
	c.expect(t, long)
}

func TestTheEndOfTheClientReachesTheServerAndItsAnswersStillComeBack(t *testing.T) {
	c := dial(t, proxy.New(t, newEcho(t).addr).Addr)
	c.say(t, "last")
	require.NoError(t, c.Conn.(*net.TCPConn).CloseWrite())
	c.expect(t, "last")
	_, err := c.hear(t)
	require.ErrorIs(t, err, io.EOF)
}

func TestCutClosesConnectionsAndLetsNewOnesIn(t *testing.T) {
	p := proxy.New(t, newEcho(t).addr)
	c := dial(t, p.Addr)
	c.say(t, "a")
	c.expect(t, "a")
	p.Cut()
	c.expectCut(t)

	c = dial(t, p.Addr)
	c.say(t, "b")
	c.expect(t, "b")
}

func TestRefuseRefusesNewConnectionsAndKeepsOldOnes(t *testing.T) {
	p := proxy.New(t, newEcho(t).addr)
	c := dial(t, p.Addr)
	c.say(t, "a")
	c.expect(t, "a")
	for range 3 {
		p.Refuse(true)
		p.Refuse(true)
		_, err := net.Dial("tcp", p.Addr)
		require.ErrorIs(t, err, syscall.ECONNREFUSED)
		p.Refuse(false)
		p.Refuse(false)
		n := dial(t, p.Addr)
		n.say(t, "b")
		n.expect(t, "b")
	}
	c.say(t, "c")
	c.expect(t, "c")
}

func TestBlackholeHoldsTrafficBothWaysUntilItEnds(t *testing.T) {
	e := newEcho(t)
	p := proxy.New(t, e.addr)
	c := dial(t, p.Addr)
	p.Blackhole(true)
	c.say(t, "a")
	n := dial(t, p.Addr)
	n.say(t, "b")
	c.hearsNothing(t)
	n.hearsNothing(t)
	require.Zero(t, e.lines.Load())
	p.Blackhole(false)
	c.expect(t, "a")
	n.expect(t, "b")
}

func TestBlackholeRepliesLetsRequestsThrough(t *testing.T) {
	e := newEcho(t)
	p := proxy.New(t, e.addr)
	c := dial(t, p.Addr)
	p.BlackholeReplies(true)
	c.say(t, "a")
	eventually(t, "the request to arrive", func() bool { return e.lines.Load() == 1 })
	c.hearsNothing(t)
	p.Cut()
	c.expectCut(t)
}

func TestOnBytesCutsBeforeTheRequestIsForwarded(t *testing.T) {
	e := newEcho(t)
	p := proxy.New(t, e.addr)
	c := dial(t, p.Addr)
	p.OnBytes(true, []byte("commit"), p.Cut)
	c.say(t, "begin")
	c.expect(t, "begin")
	c.say(t, "commit")
	c.expectCut(t)
	require.EqualValues(t, 1, e.lines.Load())
}

func TestOnBytesLosesOnlyTheReply(t *testing.T) {
	e := newEcho(t)
	p := proxy.New(t, e.addr)
	c := dial(t, p.Addr)
	p.OnBytes(true, []byte("commit"), func() { p.BlackholeReplies(true) })
	c.say(t, "commit")
	eventually(t, "the request to arrive", func() bool { return e.lines.Load() == 1 })
	p.Cut()
	c.expectCut(t)
}

func TestOnBytesSeesRepliesWhenAsked(t *testing.T) {
	p := proxy.New(t, newEcho(t).addr)
	c := dial(t, p.Addr)
	p.OnBytes(false, []byte("ok"), p.Cut)
	c.say(t, "ok")
	c.expectCut(t)
}

func TestOnBytesFindsAPatternAcrossReadsAndFiresOnce(t *testing.T) {
	var fired atomic.Int64
	p := proxy.New(t, newEcho(t).addr)
	c := dial(t, p.Addr)
	p.OnBytes(true, []byte("a\nb\nc"), func() { fired.Add(1) })
	for range 3 {
		for _, line := range []string{"a", "b", "c"} { // each answered before the next: reads of their own
			c.say(t, line)
			c.expect(t, line)
		}
	}
	require.EqualValues(t, 1, fired.Load())
}

func TestAServerThatIsDownEndsTheClientsConnection(t *testing.T) {
	n, err := port.Free()
	require.NoError(t, err)
	c := dial(t, proxy.New(t, port.Address(n)).Addr)
	_, err = c.hear(t)
	require.True(t, errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET), "%v", err)
}
