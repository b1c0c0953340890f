package millrace_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace"
)

// A deadEnd is a network in which the next so many connections that have written a note "a..." and say COMMIT go dead
// for ever while others live, as behind a router that forgot them. Those that look for the outcome write no notes.
type deadEnd struct {
	commit []byte
	passes bool // the request still reaches the server
	resets bool // the peer resets the connection, instead of falling silent
	armed  atomic.Int32
}

func (d *deadEnd) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, network, address)
	return &deadEndConn{Conn: c, d: d, dead: make(chan struct{})}, err
}

func (d *deadEnd) hits() bool {
	for {
		n := d.armed.Load()
		if n == 0 || d.armed.CompareAndSwap(n, n-1) {
			return n > 0
		}
	}
}

type deadEndConn struct {
	net.Conn
	d     *deadEnd
	dead  chan struct{}
	noted atomic.Bool
}

func (c *deadEndConn) Write(p []byte) (int, error) {
	select {
	case <-c.dead:
		return len(p), nil
	default:
	}
	if bytes.Contains(p, []byte("VALUES ('a")) {
		c.noted.Store(true)
	}
	if !c.noted.Load() || !bytes.Contains(p, c.d.commit) || !c.d.hits() {
		return c.Conn.Write(p)
	}
	close(c.dead)
	switch {
	case c.d.passes:
		_, _ = c.Conn.Write(p)
	case c.d.resets:
		c.reset()
	}
	return len(p), nil
}

// Read hears nothing any more, also what was asked for before: nobody reads ahead of COMMIT's answer.
func (c *deadEndConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	select {
	case <-c.dead:
	default:
		return n, err
	}
	if c.d.resets { // instead of the answer
		c.reset()
		return 0, &net.OpError{Op: "read", Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: syscall.ECONNRESET}
	}
	for err == nil { // until a deadline or Close, as on a real connection
		_, err = c.Conn.Read(p)
	}
	return 0, err
}

func (c *deadEndConn) reset() {
	_ = c.Conn.(*net.TCPConn).SetLinger(0)
	_ = c.Conn.Close()
}

// A connection that is reset at COMMIT, before or after the server has heard it.
func TestTheOutcomeOfACommitThatIsResetIsNeverGuessed(t *testing.T) {
	for _, driver := range drivers[:4] {
		for name, passes := range map[string]bool{"reply": true, "request": false} {
			t.Run(driver+", "+name, func(t *testing.T) {
				t.Parallel()
				e := newEnv(t, driver, millrace.Config{})
				require.NoError(t, millrace.Migrate(t.Context(), e.db, millrace.WitnessMigrations()))
				for _, resolve := range []time.Duration{0, time.Minute} {
					e.reset(t)
					d := &deadEnd{commit: commitBytes(driver), passes: passes, resets: true}
					through(t, e, 1, d.DialContext, millrace.Config{ResolveTimeout: resolve})
					allAtOnce(t, e, 1, "first", nil)
					d.armed.Store(1)
					var j journal
					err := allAtOnce(t, e, 1, "a", &j)[0]
					require.Zero(t, d.armed.Load(), "COMMIT was not seen")
					var unknown *millrace.UnknownOutcomeError
					switch {
					case resolve == 0:
						require.ErrorAs(t, err, &unknown)
						require.Equal(t, "a0:unknown", j.String())
					case passes:
						require.NoError(t, err)
						require.Equal(t, "a0:committed", j.String())
					default:
						require.ErrorIs(t, err, millrace.ErrTxAborted)
						require.Equal(t, "a0:rolled back", j.String())
					}
					if passes {
						require.Equal(t, "a0 first0", e.notes(t))
					} else {
						require.Equal(t, "first0", e.notes(t))
					}
				}
			})
		}
	}
}

// The connections that wait for COMMIT are all that there may be, and what became of each is found out nevertheless.
func TestAPoolOfOneConnectionFindsOutTheOutcome(t *testing.T) {
	for _, driver := range drivers[:4] {
		for name, passes := range map[string]bool{"reply lost": true, "request lost": false} {
			for _, n := range []int{1, 3} {
				t.Run(fmt.Sprintf("%s, %s, %d", driver, name, n), func(t *testing.T) {
					t.Parallel()
					e := newEnv(t, driver, millrace.Config{})
					require.NoError(t, millrace.Migrate(t.Context(), e.db, millrace.WitnessMigrations()))
					d := &deadEnd{commit: commitBytes(driver), passes: passes}
					through(t, e, n, d.DialContext, millrace.Config{CommitTimeout: commitTimeout, ResolveTimeout: time.Minute})
					allAtOnce(t, e, n, "first", nil)
					d.armed.Store(int32(n))
					var j journal
					errs := allAtOnce(t, e, n, "a", &j)
					require.Zero(t, d.armed.Load(), "COMMIT was not seen")
					want, hooks := "first0", "committed"
					for i := 1; i < n; i++ {
						want += fmt.Sprint(" first", i)
					}
					for i, err := range errs {
						if passes {
							require.NoError(t, err)
						} else {
							require.ErrorIs(t, err, millrace.ErrTxAborted)
							hooks = "rolled back"
						}
						require.Contains(t, j.String(), fmt.Sprint("a", i, ":", hooks))
					}
					if passes {
						want = strings.ReplaceAll(want, "first", "a") + " " + want
					}
					require.Equal(t, want, e.notes(t))
					require.NoError(t, e.InTx(t.Context(), func(ctx context.Context, tx handle) error { return note(ctx, tx, "next") }))
				})
			}
		}
	}
}

// allAtOnce has n transactions open before the first of them commits.
func allAtOnce(t *testing.T, e *env, n int, name string, j *journal) []error {
	errs := make([]error, n)
	var open, done sync.WaitGroup
	open.Add(n)
	for i := range n {
		done.Go(func() {
			errs[i] = e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
				err := note(ctx, tx, fmt.Sprint(name, i))
				if j != nil {
					err = errors.Join(err, millrace.AfterCompletion(ctx, func(_ context.Context, o millrace.Outcome) error {
						j.add("%s%d:%v", name, i, o)
						return nil
					}))
				}
				open.Done()
				open.Wait()
				return err
			})
			if j == nil && errs[i] != nil {
				t.Error(errs[i])
			}
		})
	}
	done.Wait()
	return errs
}
