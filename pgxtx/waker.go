package pgxtx

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// WakerConfig is the configuration of a Waker. The zero value is right for one outbox per database.
type WakerConfig struct {
	// Channel is the name that notes are sent under, at most 63 bytes. Processes with the same channel in
	// the same database hear each other; outboxes that share one wake each other's forwarders for nothing.
	// Default "millrace".
	Channel string
	// Configure, if set, changes what connString says of each connection before it is made: a password that
	// expires, TLS.
	Configure func(ctx context.Context, c *pgx.ConnConfig) error
}

// Waker is an outbox.Waker over LISTEN and NOTIFY of PostgreSQL, for outboxes on any driver. It has
// connections of its own, at most one that sends and one that listens: NOTIFY inside a business transaction
// would make commits wait for each other. Safe for concurrent use.
type Waker struct {
	config    *pgx.ConnConfig
	channel   string
	configure func(context.Context, *pgx.ConnConfig) error

	sending chan *sender // one slot: whoever holds it may send
}

// sender is the connection that sends; nil until it is needed.
type sender struct {
	conn   *pgx.Conn
	closed bool
}

// ErrWakerClosed is returned by the methods of a Waker after Close.
var ErrWakerClosed = errors.New("pgxtx: the waker is closed")

// NewWaker checks its arguments and connects to nothing. connString is as pgx takes it, a URL or keywords
// and values; pool.Config().ConnString() has that of a pool. It must lead to the primary of the outbox's
// database itself, or through a pooler in session mode: in transaction mode LISTEN hears nothing.
func NewWaker(connString string, cfg WakerConfig) (*Waker, error) {
	var errs []error
	config, err := pgx.ParseConfig(connString)
	if err != nil {
		errs = append(errs, fmt.Errorf("pgxtx: NewWaker: %w", err)) // pgx hides the password
	}
	if cfg.Channel == "" {
		cfg.Channel = "millrace"
	}
	if len(cfg.Channel) > 63 || strings.ContainsRune(cfg.Channel, 0) {
		errs = append(errs, fmt.Errorf("pgxtx: WakerConfig.Channel %q: want at most 63 bytes, without NUL", cfg.Channel))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if config.RuntimeParams["application_name"] == "" {
		config.RuntimeParams["application_name"] = "millrace wake-up"
	}
	w := &Waker{config: config, channel: cfg.Channel, configure: cfg.Configure, sending: make(chan *sender, 1)}
	w.sending <- &sender{}
	return w, nil
}

// Send implements outbox.Waker.
func (w *Waker) Send(ctx context.Context, note string) error {
	var s *sender
	select {
	case s = <-w.sending:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { w.sending <- s }()
	if s.closed {
		return ErrWakerClosed
	}
	kept := s.conn != nil
	err := w.notify(ctx, s, note)
	if err != nil && kept && s.conn == nil && ctx.Err() == nil {
		err = w.notify(ctx, s, note) // the connection was lost while it was idle
	}
	return err
}

// notify sends over the connection, which it makes if there is none, and forgets if it is broken.
func (w *Waker) notify(ctx context.Context, s *sender, note string) (err error) {
	if s.conn == nil {
		if s.conn, err = w.connect(ctx); err != nil {
			s.conn = nil
			return err
		}
	}
	// The simple protocol needs no prepared statement, which a pooler might lose.
	_, err = s.conn.Exec(ctx, `SELECT pg_notify($1, $2)`, pgx.QueryExecModeSimpleProtocol, w.channel, note)
	if s.conn.IsClosed() {
		s.conn = nil
	}
	if err != nil {
		return fmt.Errorf("pgxtx: notify: %w", err)
	}
	return nil
}

// Listen implements outbox.Waker.
func (w *Waker) Listen(ctx context.Context, ready func(), heard func(note string)) error {
	conn, err := w.connect(ctx)
	if err != nil {
		return err
	}
	defer hangUp(ctx, conn)
	if _, err := conn.Exec(ctx, `LISTEN `+pgx.Identifier{w.channel}.Sanitize()); err != nil {
		return fmt.Errorf("pgxtx: listen: %w", err)
	}
	ready()
	for {
		n, err := conn.WaitForNotification(ctx)
		if err != nil {
			return fmt.Errorf("pgxtx: listen: %w", err)
		}
		if n.Channel == w.channel {
			heard(n.Payload)
		}
	}
}

// Close closes the connection that sends. A Listen ends with its context. It may be called more than once.
func (w *Waker) Close(ctx context.Context) error {
	select {
	case s := <-w.sending:
		if s.conn != nil {
			hangUp(ctx, s.conn)
		}
		w.sending <- &sender{closed: true}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("pgxtx: close: a note is being sent: %w", ctx.Err())
	}
}

func (w *Waker) connect(ctx context.Context) (*pgx.Conn, error) {
	config := w.config.Copy()
	if w.configure != nil {
		if err := w.configure(ctx, config); err != nil {
			return nil, fmt.Errorf("pgxtx: connect the waker: %w", err)
		}
	}
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("pgxtx: connect the waker: %w", err)
	}
	return conn, nil
}

// hangUp closes a connection, politely if that does not take long.
func hangUp(ctx context.Context, conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = conn.Close(ctx) // it is closed in any case
}
