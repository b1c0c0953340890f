package rabbitmq

import (
	"context"
	"fmt"
	"strconv"

	amqp091 "github.com/rabbitmq/amqp091-go"
)

// confirmChannel is an AMQP channel in confirm mode, used by one batch at a time.
type confirmChannel struct {
	*amqp091.Channel
	conn *connection

	// returns has room for every message that may wait for its confirm. amqp091 throws a return away
	// that is not taken within 5 s, and delivers the confirm all the same.
	returns  chan amqp091.Return
	returned map[string]amqp091.Return // by returnHeader
	closed   chan *amqp091.Error

	// numbers are the values of returnHeader, made once: "0", "1" and so on. All messages of a window are
	// answered before the next one is sent, or the channel is not used again.
	numbers []any
}

// closedByBroker says that the broker closed a channel over something sent on it; the connection is
// alive.
type closedByBroker struct{ cause *amqp091.Error }

func (c closedByBroker) Error() string { return "rabbitmq: channel closed: " + c.cause.Error() }
func (c closedByBroker) Unwrap() error { return c.cause }

func (c *connection) confirmChannel(ctx context.Context) (*confirmChannel, error) {
	result := &confirmChannel{conn: c, returned: map[string]amqp091.Return{}}
	ch, err := c.channel(ctx, func(ch *amqp091.Channel) error {
		result.returns = ch.NotifyReturn(make(chan amqp091.Return, c.config.Window))
		result.closed = ch.NotifyClose(make(chan *amqp091.Error, 1))
		return ch.Confirm(false)
	})
	if err != nil {
		return nil, err
	}
	result.Channel = ch
	return result, nil
}

// send publishes messages without waiting for each, and answers them when their confirms have come. What
// it leaves unanswered may or may not be stored; the error says why.
func (c *confirmChannel) send(ctx context.Context, window []*outgoing) error {
	for n := len(c.numbers); n < len(window); n++ {
		c.numbers = append(c.numbers, strconv.Itoa(n))
	}
	f := newFlight(c, window)
	defer f.abandon()
	// In a goroutine of its own, because a write can hang until its deadline.
	c.conn.wg.Go(f.write)
	p := newPatience(ctx, c.conn, f.progress)
	defer p.end()

	err := f.wait(p)
	whole := f.answer()
	if err == nil && !whole {
		err = c.whyClosed(p, f.ended)
	}
	return err
}

// whyClosed waits for the cause, which comes just after the channel is marked closed, and for the
// writer, so that the messages may be sent anew.
func (c *confirmChannel) whyClosed(p *patience, ended <-chan struct{}) error {
	if !c.IsClosed() {
		c.conn.kill() // a write failed half way: the connection is of no more use
	}
	cause, err := await(p, c.closed)
	if err != nil {
		return err
	}
	if _, err := await(p, ended); err != nil {
		return err
	}
	switch {
	case cause == nil:
		return fmt.Errorf("rabbitmq: connection lost: %w", amqp091.ErrClosed)
	case c.conn.IsClosed():
		return fmt.Errorf("rabbitmq: connection lost: %w", cause)
	}
	return closedByBroker{cause}
}
