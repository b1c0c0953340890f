package proxy_test

import (
	"bufio"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/internal/fault/proxy"
	"github.com/millrace-go/millrace/internal/testenv/port"
)

func TestADelayedServerAnswersLateInOrderAndManyAtATime(t *testing.T) {
	t.Parallel()
	ln, err := port.Listen()
	require.NoError(t, err)
	t.Cleanup(func() { _ = ln.Close() })
	go func() { // echoes lines
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		for lines := bufio.NewScanner(conn); lines.Scan(); {
			_, _ = fmt.Fprintln(conn, lines.Text())
		}
	}()
	const roundTrip = 100 * time.Millisecond
	conn, err := net.Dial("tcp", proxy.Delayed(t, ln.Addr().String(), roundTrip))
	require.NoError(t, err)
	defer conn.Close()
	begin := time.Now()
	const n = 1000 // one after the other they would take over a minute
	go func() {
		for i := range n {
			_, _ = fmt.Fprintln(conn, i)
		}
	}()
	answers := bufio.NewScanner(conn)
	for i := range n {
		require.True(t, answers.Scan())
		require.Equal(t, fmt.Sprint(i), answers.Text())
		if i == 0 {
			require.GreaterOrEqual(t, time.Since(begin), roundTrip)
		}
	}
	require.Less(t, time.Since(begin), n*roundTrip/2)
}
