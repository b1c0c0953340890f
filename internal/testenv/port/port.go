// Package port finds loopback ports for servers that tests kill and start again.
//
// It takes them from below the range that the system uses for outgoing connections. A port out of
// that range can be taken by a client's connection while the server is down; and a client that keeps
// dialing such a port ends up connected to itself, which keeps the server from ever coming back.
package port

import (
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
)

const (
	lowest   = 20000
	beyond   = 32000 // Linux gives out 32768 and up, other systems 49152 and up
	attempts = 100
)

// Listen listens on a free port of 127.0.0.1.
func Listen() (net.Listener, error) {
	var last error
	for range attempts {
		ln, err := net.Listen("tcp", Address(lowest+rand.IntN(beyond-lowest)))
		if err == nil {
			return ln, nil
		}
		last = err
	}
	return nil, fmt.Errorf("port: listen: no free port between %d and %d: %w", lowest, beyond, last)
}

// Free returns a port that was free a moment ago. Whoever starts a server on it must be ready for
// somebody else having been faster.
func Free() (int, error) {
	ln, err := Listen()
	if err != nil {
		return 0, err
	}
	n := ln.Addr().(*net.TCPAddr).Port
	return n, ln.Close()
}

// Address is the host:port of a port on loopback.
func Address(n int) string {
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(n))
}
