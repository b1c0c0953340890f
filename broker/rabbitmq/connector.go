package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"sync"
	"time"

	amqp091 "github.com/rabbitmq/amqp091-go"

	"github.com/millrace-go/millrace/internal/backoff"
)

// connector has one connection to the broker, made when it is first asked for and made anew when it
// was lost.
type connector struct {
	config  Config
	name    string // by which the broker's operator knows the connection
	place   string
	log     *slog.Logger
	backoff backoff.Policy

	ctx    context.Context // ends with close
	cancel context.CancelFunc
	wg     sync.WaitGroup // what runs for it and for its connections; one is close itself

	mu      sync.Mutex
	current *connection
	dialing chan struct{} // closed when the attempt under way has ended; nil if none is
	fails   int           // in a row
	logins  int           // fails in a row that looked like a wrong password
	last    error         // of the last attempt, if it failed
	retryAt time.Time
}

func newConnector(config Config, name string) *connector {
	c := &connector{
		config: config, name: name, place: config.place(), log: config.Logger,
		backoff: backoff.Policy{Base: 100 * time.Millisecond, Max: 2 * time.Second},
	}
	// The connection serves many calls and outlives each of them.
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.wg.Add(1)
	return c
}

// get returns the connection, or dials. It waits for Config.Timeout at most. After a failure it answers
// with the same error until the back-off has passed, so that an outage costs callers nothing.
func (c *connector) get(ctx context.Context) (*connection, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, c.config.Timeout, fmt.Errorf("no connection within %s", c.config.Timeout))
	defer cancel()
	return c.await(ctx)
}

func (c *connector) await(ctx context.Context) (*connection, error) {
	for {
		c.mu.Lock()
		switch {
		case c.ctx.Err() != nil:
			c.mu.Unlock()
			return nil, ErrClosed
		case c.current != nil && !c.current.IsClosed():
			conn := c.current
			c.mu.Unlock()
			return conn, nil
		case c.dialing == nil && time.Now().Before(c.retryAt):
			err := c.last
			c.mu.Unlock()
			return nil, err
		case c.dialing == nil:
			c.dialing = make(chan struct{})
			c.wg.Go(c.dial)
		}
		dialing := c.dialing
		c.mu.Unlock()
		select {
		case <-dialing:
		case <-ctx.Done():
			return nil, fmt.Errorf("rabbitmq: connect to %s: %w", c.place, context.Cause(ctx))
		}
	}
}

// check connects, if need be twice to be sure of a refused login.
func (c *connector) check(ctx context.Context) error {
	for {
		conn, err := c.await(ctx)
		switch {
		case err == nil:
			return conn.onThrowaway(ctx, func(*amqp091.Channel) error { return nil })
		case !errors.Is(err, errMaybeLogin) || ctx.Err() != nil:
			return err
		}
		c.wait(ctx)
	}
}

// wait waits until get may try again.
func (c *connector) wait(ctx context.Context) {
	c.mu.Lock()
	d := time.Until(c.retryAt)
	c.mu.Unlock()
	backoff.Sleep(ctx, d)
}

func (c *connector) dial() {
	start := time.Now()
	conn, err := c.open()
	took := time.Since(start)

	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.dialing)
	c.dialing = nil
	if err == nil && c.ctx.Err() != nil {
		conn.kill()
		return
	}
	if err == nil {
		if c.fails > 0 {
			c.log.Info("rabbitmq: connected again", "broker", c.place, "attempts", c.fails+1)
		}
		c.current, c.fails, c.logins, c.last = conn, 0, 0, nil
		return
	}
	c.fails++
	c.last = loginError(c.place, c.refusedLogin(err, took))
	c.retryAt = time.Now().Add(c.backoff.Delay(c.fails))
	if c.ctx.Err() == nil {
		c.log.Warn("rabbitmq: not connected", "broker", c.place, "attempt", c.fails, "error", c.last)
	}
}

// refusedLogin finds out whether a connection that the broker closed without a word means a wrong
// password. RabbitMQ does that to clients like amqp091-go, after a pause of 3 s; a broker that died
// in the middle of the login looks the same. So it must have taken long, twice in a row.
func (c *connector) refusedLogin(err error, took time.Duration) error {
	if !errors.Is(err, amqp091.ErrCredentials) {
		c.logins = 0
		return err
	}
	const pause = 2 * time.Second
	if took < pause || took >= c.loginTimeout() {
		return errors.New("the connection ended during the login")
	}
	if c.logins++; c.logins < 2 {
		return errMaybeLogin
	}
	return &amqp091.Error{Code: amqp091.AccessRefused, Reason: "the broker ended the login", Server: true}
}

var errMaybeLogin = errors.New("the broker ended the login (wrong user or password?)")

// loginTimeout leaves RabbitMQ the time that it takes to answer a wrong password.
func (c *connector) loginTimeout() time.Duration {
	return max(c.config.Timeout, 5*time.Second)
}

func (c *connector) open() (*connection, error) {
	var raw *socket
	unhook := func() bool { return true }
	config := c.amqpConfig()
	dial := config.Dial
	if dial == nil {
		dialer := net.Dialer{Timeout: c.config.Timeout}
		dial = func(network, addr string) (net.Conn, error) { return dialer.DialContext(c.ctx, network, addr) }
	}
	config.Dial = func(network, addr string) (net.Conn, error) {
		conn, err := dial(network, addr)
		if err != nil {
			return nil, err
		}
		raw = &socket{Conn: conn, timeout: c.config.Timeout}
		unhook = context.AfterFunc(c.ctx, func() { _ = conn.Close() })
		// Until the login is done; amqp091 lifts it then.
		if err := conn.SetDeadline(time.Now().Add(c.loginTimeout())); err != nil {
			return nil, err
		}
		return raw, nil
	}
	conn, err := amqp091.DialConfig(c.config.URL, config)
	unhook()
	if err != nil {
		if raw != nil {
			_ = raw.Close() // amqp091 leaves it open, and a goroutine reading from it
		}
		return nil, err
	}
	return newConnection(conn, raw, c.config, &c.wg), nil
}

func (c *connector) amqpConfig() amqp091.Config {
	var config amqp091.Config
	if given := c.config.AMQP.Connection.AmqpConfig; given != nil {
		config = *given
	}
	config.Recovery = nil // ours
	config.Properties = maps.Clone(config.Properties)
	if config.Properties == nil {
		config.Properties = amqp091.NewConnectionProperties()
		config.Properties.SetClientConnectionName(c.name)
	}
	if config.TLSClientConfig == nil && c.config.AMQP.Connection.TLSConfig != nil {
		config.TLSClientConfig = c.config.AMQP.Connection.TLSConfig.Clone()
	}
	return config
}

// close ends the connection, and waits for all that ran for it. It is called once, when nobody calls
// get any more.
func (c *connector) close() {
	c.mu.Lock()
	c.cancel()
	conn := c.current
	c.mu.Unlock()
	if conn != nil {
		conn.shutdown()
	}
	c.wg.Done()
	c.wg.Wait()
}

// abort ends the connection at once, and with it whatever waits for the broker.
func (c *connector) abort() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cancel()
	if c.current != nil {
		c.current.kill()
	}
}
