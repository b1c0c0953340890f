package proxy

import (
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/millrace-go/millrace/internal/testenv/port"
)

// Delayed starts a proxy that makes a far server of a near one: each piece of traffic comes half a round
// trip later, and any number of pieces may be on their way. It returns the host:port to dial. It is
// closed, with all connections, when the test ends.
func Delayed(t testing.TB, target string, roundTrip time.Duration) (addr string) {
	t.Helper()
	ln, err := port.Listen()
	if err != nil {
		t.Fatalf("proxy: %v", err)
	}
	d := &delayed{target: target, delay: roundTrip / 2}
	d.wg.Go(func() { d.accept(ln) })
	t.Cleanup(func() {
		_ = ln.Close()
		d.close()
	})
	return ln.Addr().String()
}

type delayed struct {
	target string
	delay  time.Duration
	wg     sync.WaitGroup

	mu     sync.Mutex
	conns  []net.Conn
	closed bool
}

func (d *delayed) accept(ln net.Listener) {
	for {
		client, err := ln.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", d.target)
		if err != nil {
			_ = client.Close()
			continue
		}
		if !d.keep(client, server) {
			return
		}
		d.wg.Go(func() { d.pipe(server, client) })
		d.wg.Go(func() { d.pipe(client, server) })
	}
}

// keep tells whether the proxy still serves.
func (d *delayed) keep(conns ...net.Conn) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.conns = append(d.conns, conns...)
	if d.closed {
		closeAll(conns)
	}
	return !d.closed
}

func (d *delayed) close() {
	d.mu.Lock()
	d.closed = true
	closeAll(d.conns)
	d.mu.Unlock()
	d.wg.Wait()
}

func closeAll(conns []net.Conn) {
	for _, c := range conns {
		_ = c.Close()
	}
}

type piece struct {
	due  time.Time
	data []byte
}

// pipe reads at once and writes late.
func (d *delayed) pipe(dst, src net.Conn) {
	pieces := make(chan piece, 4096)
	d.wg.Go(func() {
		for p := range pieces {
			time.Sleep(time.Until(p.due)) // the network's time, not a wait for something to happen
			if _, err := dst.Write(p.data); err != nil {
				_ = src.Close()
			}
		}
		_ = dst.Close()
	})
	defer close(pieces)
	for {
		buffer := make([]byte, 32<<10)
		n, err := src.Read(buffer)
		if n > 0 {
			pieces <- piece{time.Now().Add(d.delay), buffer[:n]}
		}
		if err != nil {
			if !errors.Is(err, io.EOF) {
				_ = dst.Close()
			}
			return
		}
	}
}
