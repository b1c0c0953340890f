package rabbitmq

import (
	"errors"
	"net"
	"sync"
	"time"
)

// socket is the connection to the broker as amqp091 sees it.
//
// Every write has a deadline: a broker that has stopped reading would otherwise hold the writer, and
// amqp091 with it, for ever. And the messages of a batch go out together: amqp091 writes each by itself, which
// costs the broker and us more than all the rest of it.
type socket struct {
	net.Conn
	timeout time.Duration

	mu    sync.Mutex
	corks int // batches that are being written
	held  []byte
}

// heldBytes is what is held back at most: a batch should be on its way while the rest of it is written.
const heldBytes = 32 << 10

// Write sends p, or holds it back while a batch is being written. What it holds back is lost with the
// connection, as is what the kernel holds.
func (s *socket) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.corks > 0 && len(s.held)+len(p) <= heldBytes {
		s.held = append(s.held, p...)
		return len(p), nil
	}
	if err := s.flush(); err != nil {
		return 0, err
	}
	return s.send(p)
}

// cork begins to hold back what is written. Each is followed soon by uncork, without a wait for the broker
// in between.
func (s *socket) cork() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.corks++
}

// uncork sends what was held back. If that fails nobody else would hear of it, so it ends the connection.
func (s *socket) uncork() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.corks--
	if s.flush() != nil {
		_ = s.Close()
	}
}

func (s *socket) flush() error {
	if len(s.held) == 0 {
		return nil
	}
	_, err := s.send(s.held)
	s.held = s.held[:0]
	return err
}

func (s *socket) send(p []byte) (int, error) {
	if err := s.SetWriteDeadline(time.Now().Add(s.timeout)); err != nil && !errors.Is(err, net.ErrClosed) {
		return 0, err
	}
	return s.Conn.Write(p)
}
