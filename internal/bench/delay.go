package main

import (
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
	due    time.Time
	buffer *[pieceBytes]byte
	n      int
}

// The proxy shares the machine with what is measured, and is to cost little of it: buffers are used again, and what is
// due is written at once.
const pieceBytes = 64 << 10

var buffers = sync.Pool{New: func() any { return new([pieceBytes]byte) }}

// carry takes bytes one way. Reading and writing are apart, so that what follows does not wait for what
// is on its way.
func (d *delay) carry(dst, src net.Conn) {
	pieces := make(chan piece, 4096)
	d.wg.Go(func() {
		defer close(pieces)
		for {
			b := buffers.Get().(*[pieceBytes]byte)
			n, err := src.Read(b[:])
			if n > 0 {
				pieces <- piece{time.Now().Add(d.each), b, n}
			}
			if err != nil {
				return
			}
		}
	})
	var failed error
	for next, ok := <-pieces; ok; {
		time.Sleep(time.Until(next.due))
		var batch []piece
		var more bool
		if batch, next, more = gather(pieces, next, time.Now()); failed == nil { // else drain, so that the reader ends
			if err := write(dst, batch); err != nil {
				failed = errors.Join(err, src.Close())
			}
		}
		if !more {
			next, ok = <-pieces
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

// gather returns the first piece with those that follow it and are due by now, and the next one if it is there.
func gather(pieces <-chan piece, first piece, now time.Time) (batch []piece, next piece, more bool) {
	batch = []piece{first}
	for {
		select {
		case p, ok := <-pieces:
			if !ok || p.due.After(now) {
				return batch, p, ok
			}
			batch = append(batch, p)
		default:
			return batch, piece{}, false
		}
	}
}

// write writes pieces and gives their buffers back.
func write(dst net.Conn, batch []piece) error {
	var data net.Buffers
	for _, p := range batch {
		data = append(data, p.buffer[:p.n])
	}
	_, err := data.WriteTo(dst)
	for _, p := range batch {
		buffers.Put(p.buffer)
	}
	return err
}
