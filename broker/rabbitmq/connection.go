package rabbitmq

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-amqp/v3/pkg/amqp"
	amqp091 "github.com/rabbitmq/amqp091-go"
)

// connection is one connection, for as long as it lasts.
type connection struct {
	*amqp091.Connection
	config Config
	raw    *socket
	wg     *sync.WaitGroup // the connector's; what runs on a connection ends soon after it

	mu       sync.Mutex
	blocked  chan struct{} // closed while the broker takes no messages
	free     chan struct{} // closed while it does
	declared map[string]bool

	declaring chan struct{} // holds one: a lock that can be waited for with a context
	gone      chan struct{} // closed when the connection is
}

func newConnection(conn *amqp091.Connection, raw *socket, config Config, wg *sync.WaitGroup) *connection {
	c := &connection{
		Connection: conn, config: config, raw: raw, wg: wg,
		blocked: make(chan struct{}), free: make(chan struct{}), declared: map[string]bool{},
		declaring: make(chan struct{}, 1), gone: make(chan struct{}),
	}
	close(c.free)
	c.wg.Go(func() { c.watchBlocked(conn.NotifyBlocked(make(chan amqp091.Blocking, 8))) })
	return c
}

func (c *connection) watchBlocked(states <-chan amqp091.Blocking) {
	defer close(c.gone)
	is := false
	for state := range states {
		if state.Active == is {
			continue
		}
		is = state.Active
		c.mu.Lock()
		if is {
			c.config.Logger.Warn("rabbitmq: the broker blocks publishers", "broker", c.config.place(), "reason", state.Reason)
			close(c.blocked)
			c.free = make(chan struct{})
		} else {
			c.config.Logger.Info("rabbitmq: the broker takes messages again", "broker", c.config.place())
			close(c.free)
			c.blocked = make(chan struct{})
		}
		c.mu.Unlock()
	}
}

// whenBlocked is closed while, or as soon as, the broker takes no messages.
func (c *connection) whenBlocked() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.blocked
}

// whenFree is closed while, or as soon as, the broker takes messages.
func (c *connection) whenFree() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.free
}

// call runs something that waits for an answer of the broker. It returns when ctx ends, and leaves f
// behind; after Config.Timeout the connection is given up, which ends f. Every wait that amqp091
// itself does not bound goes through here.
func (c *connection) call(ctx context.Context, f func() error) error {
	done := make(chan error, 1)
	timer := time.AfterFunc(c.config.Timeout, c.kill)
	c.wg.Go(func() {
		err := f()
		if !timer.Stop() && err != nil {
			err = fmt.Errorf("no answer within %s: %w", c.config.Timeout, err)
		}
		done <- err
	})
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// channel opens a channel and prepares it.
func (c *connection) channel(ctx context.Context, prepare func(*amqp091.Channel) error) (*amqp091.Channel, error) {
	handover := make(chan *amqp091.Channel)
	waiting, left := context.WithCancel(ctx)
	failed := make(chan error, 1)
	c.wg.Go(func() {
		failed <- c.call(context.WithoutCancel(ctx), func() error {
			ch, err := c.Connection.Channel()
			if err == nil {
				err = prepare(ch)
			}
			if err != nil {
				return err
			}
			select {
			case handover <- ch:
				return nil
			case <-waiting.Done():
				return ch.Close()
			}
		})
	})
	defer left()
	select {
	case ch := <-handover:
		return ch, nil
	case err := <-failed:
		return nil, fmt.Errorf("rabbitmq: open channel: %w", err)
	case <-ctx.Done():
		return nil, fmt.Errorf("rabbitmq: open channel: %w", context.Cause(ctx))
	}
}

// discard closes a channel without waiting for it. It does not ask while the broker is deaf: to give the
// connection up for that, and make another, would send it the same messages again and again.
func (c *connection) discard(ch *amqp091.Channel) {
	c.wg.Go(func() {
		select {
		case <-c.whenFree():
		case <-c.gone:
		}
		timer := time.AfterFunc(c.config.Timeout, c.kill)
		defer timer.Stop()
		_ = ch.Close()
	})
}

// declareFor declares what publishing to a topic needs, once.
func (c *connection) declareFor(ctx context.Context, topic string, params amqp.BuildTopologyParams) error {
	if c.config.SkipTopology {
		return nil
	}
	if c.knows(topic) {
		return nil
	}
	select {
	case c.declaring <- struct{}{}:
		defer func() { <-c.declaring }()
	case <-ctx.Done():
		return fmt.Errorf("rabbitmq: declare: %w", context.Cause(ctx))
	}
	if c.knows(topic) {
		return nil
	}
	builder := c.config.AMQP.TopologyBuilder
	err := c.onThrowaway(ctx, func(ch *amqp091.Channel) error {
		switch {
		case params.ExchangeName != "":
			return builder.ExchangeDeclare(ch, params.ExchangeName, c.config.AMQP)
		case params.QueueName != "" && params.QueueName == params.RoutingKey:
			return builder.BuildTopology(ch, params, c.config.AMQP, watermill.NopLogger{})
		}
		return nil
	})
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.declared[topic] = true
	c.mu.Unlock()
	return nil
}

func (c *connection) knows(topic string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.declared[topic]
}

// forget makes topologies be declared again: something of them was found missing.
func (c *connection) forget() {
	c.mu.Lock()
	clear(c.declared)
	c.mu.Unlock()
}

// onThrowaway runs f on a channel of its own: what fails in it closes the channel.
func (c *connection) onThrowaway(ctx context.Context, f func(*amqp091.Channel) error) error {
	ch, err := c.channel(ctx, f)
	if err != nil {
		return err
	}
	c.discard(ch)
	return nil
}

// shutdown says goodbye, or closes the connection without after Config.Timeout.
func (c *connection) shutdown() {
	select {
	case <-c.whenBlocked():
		c.kill() // nobody hears it
	default:
	}
	// Not CloseDeadline: amqp091's own heartbeat may push that deadline out again.
	timer := time.AfterFunc(c.config.Timeout, c.kill)
	defer timer.Stop()
	_ = c.Close() // what can go wrong is that it is closed already
	_ = c.raw.Close()
}

// kill ends the connection at once. Closing the socket first lets go whoever is stuck writing to it,
// and with it amqp091's locks.
func (c *connection) kill() {
	_ = c.raw.Close()
}
