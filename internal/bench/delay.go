package main

import (
	"bytes"
	"errors"
	"net"
	"sync"
	"time"
)

// delay stands between a client and a server and lets every byte arrive later, as a network would. It
// limits no bandwidth.
type delay struct {
	addr     string
	target   string
	each     time.Duration // one way
	listener net.Listener
	wg       sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]struct{}
}

// newDelay starts a proxy with a round trip of at least roundTrip.
func newDelay(target string, roundTrip time.Duration) (*delay, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	d := &delay{
		addr: ln.Addr().String(), target: target, each: roundTrip / 2, listener: ln,
		conns: map[net.Conn]struct{}{},
	}
	d.wg.Go(d.accept)
	return d, nil
}

func (d *delay) close() {
	_ = d.listener.Close()
	d.mu.Lock()
	for c := range d.conns {
		_ = c.Close()
	}
	d.mu.Unlock()
	d.wg.Wait()
}

func (d *delay) accept() {
	for {
		client, err := d.listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", d.target)
		if err != nil {
			_ = client.Close()
			continue
		}
		d.mu.Lock()
		d.conns[client], d.conns[server] = struct{}{}, struct{}{}
		d.mu.Unlock()
		d.wg.Go(func() { d.carry(server, client) })
		d.wg.Go(func() { d.carry(client, server) })
	}
}

// piece is what was read at one moment.
type piece struct {
	due  time.Time
	data []byte
}

// carry takes bytes one way. Reading and writing are apart, so that what follows does not wait for what
// is on its way.
func (d *delay) carry(dst, src net.Conn) {
	pieces := make(chan piece, 4096)
	d.wg.Go(func() {
		defer close(pieces)
		buffer := make([]byte, 64<<10)
		for {
			n, err := src.Read(buffer)
			if n > 0 {
				pieces <- piece{time.Now().Add(d.each), bytes.Clone(buffer[:n])}
			}
			if err != nil {
				return
			}
		}
	})
	var failed error
	for p := range pieces {
		if failed != nil {
			continue // drain, so that the reader ends
		}
		time.Sleep(time.Until(p.due))
		if _, err := dst.Write(p.data); err != nil {
			failed = errors.Join(err, src.Close())
		}
	}
	if tcp, ok := dst.(*net.TCPConn); ok && failed == nil {
		_ = tcp.CloseWrite()
	}
	d.mu.Lock()
	delete(d.conns, src)
	d.mu.Unlock()
	_ = src.Close()
}
