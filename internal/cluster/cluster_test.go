package cluster_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/millrace-go/millrace/internal/cluster"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// newNode is a server that refuses everything, and counts how often it was asked which server has what.
func newNode(t *testing.T) (addr string, asked *atomic.Int64) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = ln.Close() })
	asked = new(atomic.Int64)
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				for lines := bufio.NewScanner(conn); lines.Scan(); {
					switch line := strings.ToLower(lines.Text()); {
					case line == "slots":
						asked.Add(1)
					case strings.HasPrefix(line, "*"):
						_, _ = io.WriteString(conn, "-ERR no\r\n")
					}
				}
			}()
		}
	}()
	return ln.Addr().String(), asked
}

func TestAClientAsksAnewOnlyWhenAServerGaveNoAnswer(t *testing.T) {
	addr, asked := newNode(t)
	client := redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{addr}, MaxRetries: -1})
	defer client.Close()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	cluster.Noticed(ended, client, net.ErrClosed)
	cluster.Noticed(t.Context(), client, nil, redis.Nil, redis.ErrClosed)
	require.Eventually(t, func() bool { return asked.Load() == 1 }, time.Minute, time.Millisecond, "for the one that is closed")
	cluster.Noticed(t.Context(), client, nil, redis.Nil)
	late, cancel := context.WithTimeout(t.Context(), 0)
	defer cancel()
	require.EqualValues(t, 1, asked.Load())
	require.Eventually(t, func() bool { // the client passes over what comes just after it has asked
		cluster.Noticed(late, client, redis.Nil, errors.New("i/o timeout"))
		return asked.Load() >= 2
	}, time.Minute, time.Millisecond, "for the one that gave no answer in time")

	single := redis.NewClient(&redis.Options{Addr: addr})
	defer single.Close()
	cluster.Noticed(t.Context(), single, net.ErrClosed)
}
