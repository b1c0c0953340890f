// Package proxy is a TCP proxy for tests that cuts, refuses and swallows traffic on demand, also at
// an exact byte of the conversation.
package proxy

import (
	"bytes"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"testing"

	"github.com/millrace-go/millrace/internal/testenv/port"
)

// Proxy stands between a client and a server. All methods are safe for concurrent use, and for use
// inside an action of OnBytes.
type Proxy struct {
	// Addr is the host:port that clients dial. It stays the same, also over Refuse.
	Addr string

	target string
	wg     sync.WaitGroup

	mu       sync.Mutex
	changed  *sync.Cond // broadcast when hold or a link's closed changes
	listener net.Listener
	links    map[*link]struct{}
	hold     map[direction]bool
	triggers []*trigger
	closed   bool
}

type direction bool

const (
	up   direction = true  // client to server
	down direction = false // server to client
)

// link is one client's connection and the one to the server that belongs to it.
type link struct {
	client net.Conn
	server net.Conn // nil until dialed
	closed bool
}

type trigger struct {
	way     direction
	pattern []byte
	action  func()
}

// New starts a proxy for a host:port. It is closed, with all connections, when the test ends.
func New(t testing.TB, target string) *Proxy {
	t.Helper()
	ln, err := port.Listen()
	if err != nil {
		t.Fatalf("proxy: %v", err)
	}
	p := &Proxy{
		Addr:     ln.Addr().String(),
		target:   target,
		listener: ln,
		links:    make(map[*link]struct{}),
		hold:     make(map[direction]bool),
	}
	p.changed = sync.NewCond(&p.mu)
	p.wg.Go(func() { p.accept(ln) })
	t.Cleanup(p.close)
	return p
}

// Cut closes all connections, on both sides. What was on its way through the proxy is lost. New
// connections are served.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut()
}

// Refuse makes the system refuse new connections, as if no server listened, and with false lets them
// in again. Connections that exist are left alone. It panics if the port was lost meanwhile.
func (p *Proxy) Refuse(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || on == (p.listener == nil) {
		return
	}
	if on {
		_ = p.listener.Close()
		p.listener = nil
		return
	}
	ln, err := net.Listen("tcp", p.Addr)
	if err != nil {
		panic("proxy: listen again: " + err.Error())
	}
	p.listener = ln
	p.wg.Go(func() { p.accept(ln) })
}

// Blackhole stops forwarding, both ways, like a network that drops packets: nobody sees an error.
// New connections are accepted and hear nothing. With false, what was held back is delivered, as TCP
// would; Cut before it to lose that.
func (p *Proxy) Blackhole(on bool) { p.holdBack(on, up, down) }

// BlackholeReplies is Blackhole for what the server says: requests still get through.
func (p *Proxy) BlackholeReplies(on bool) { p.holdBack(on, down) }

// OnBytes runs action, once, when the pattern has come by in one connection, from the client
// (upstream) or from the server. It runs before the piece of traffic that completes the pattern is
// forwarded, and that piece waits for it. So an action that calls Cut loses the request, and one that
// calls BlackholeReplies loses only the reply.
func (p *Proxy) OnBytes(upstream bool, pattern []byte, action func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.triggers = append(p.triggers, &trigger{way: direction(upstream), pattern: pattern, action: action})
}

func (p *Proxy) accept(ln net.Listener) {
	for {
		client, err := ln.Accept()
		if err != nil {
			return
		}
		l := &link{client: client}
		if !p.add(l) {
			_ = client.Close()
			return
		}
		p.wg.Go(func() { p.serve(l) })
	}
}

// add tells whether the proxy still serves.
func (p *Proxy) add(l *link) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	p.links[l] = struct{}{}
	return true
}

func (p *Proxy) serve(l *link) {
	defer p.drop(l)
	server, err := net.Dial("tcp", p.target)
	if err != nil || !p.connected(l, server) {
		return
	}
	var wg sync.WaitGroup
	wg.Go(func() { p.forward(l, up, server, l.client) })
	wg.Go(func() { p.forward(l, down, l.client, server) })
	wg.Wait()
}

func (p *Proxy) connected(l *link, server net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	l.server = server
	if l.closed { // Cut came while we dialed
		_ = server.Close()
	}
	return !l.closed
}

func (p *Proxy) forward(l *link, way direction, dst, src net.Conn) {
	buffer := make([]byte, 32<<10)
	var tail []byte
	for {
		n, err := src.Read(buffer)
		if n > 0 {
			tail = p.fire(way, tail, buffer[:n])
			if !p.pass(l, way) {
				return
			}
			if _, werr := dst.Write(buffer[:n]); werr != nil {
				p.drop(l)
				return
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			if p.pass(l, way) {
				_ = dst.(*net.TCPConn).CloseWrite()
			}
			return
		case err != nil:
			p.drop(l)
			return
		}
	}
}

// fire runs the actions whose pattern ends in chunk, and returns what the next chunk has to be read
// with: a pattern may lie across two reads.
func (p *Proxy) fire(way direction, tail, chunk []byte) []byte {
	p.mu.Lock()
	if len(p.triggers) == 0 {
		p.mu.Unlock()
		return nil
	}
	seen := append(tail, chunk...)
	var due []*trigger
	keep := 0
	p.triggers = slices.DeleteFunc(p.triggers, func(t *trigger) bool {
		hit := t.way == way && bytes.Contains(seen, t.pattern)
		if hit {
			due = append(due, t)
		} else if t.way == way {
			keep = max(keep, len(t.pattern)-1)
		}
		return hit
	})
	p.mu.Unlock()
	for _, t := range due {
		t.action()
	}
	return slices.Clone(seen[max(0, len(seen)-keep):])
}

// pass waits until traffic may go this way, and tells whether the connection is still there.
func (p *Proxy) pass(l *link, way direction) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.hold[way] && !l.closed {
		p.changed.Wait()
	}
	return !l.closed
}

func (p *Proxy) holdBack(on bool, ways ...direction) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, way := range ways {
		p.hold[way] = on
	}
	p.changed.Broadcast()
}

func (p *Proxy) drop(l *link) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hangUp(l)
}

func (p *Proxy) cut() {
	for l := range p.links {
		p.hangUp(l)
	}
}

func (p *Proxy) hangUp(l *link) {
	l.closed = true
	delete(p.links, l)
	_ = l.client.Close()
	if l.server != nil {
		_ = l.server.Close()
	}
	p.changed.Broadcast()
}

func (p *Proxy) close() {
	p.mu.Lock()
	p.closed = true
	if p.listener != nil {
		_ = p.listener.Close()
	}
	p.cut()
	p.mu.Unlock()
	p.wg.Wait()
}
