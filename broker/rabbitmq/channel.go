package rabbitmq

import (
	"context"
	"fmt"
	"strconv"
	"time"

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
	count    uint64 // publishes so far
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

// send publishes messages without waiting for each, and answers them as the confirms come. What it
// leaves unanswered may or may not be stored; the error says why.
func (c *confirmChannel) send(ctx context.Context, window []*outgoing) error {
	p := patience{ctx: ctx, conn: c.conn, timer: time.NewTimer(c.conn.config.Timeout)}
	defer p.timer.Stop()
	stop := make(chan struct{})
	defer close(stop)

	out := make([]written, len(window))
	progress, ended := make(chan struct{}, len(window)), make(chan struct{})
	// In a goroutine of its own, because a write can hang until its deadline.
	c.conn.wg.Go(func() {
		defer close(ended)
		defer close(progress)
		c.write(window, out, progress, stop)
	})
	for i, o := range window {
		if _, err := await(p, progress); err != nil {
			return err
		}
		w := out[i]
		if w.confirm == nil {
			return c.whyClosed(p, ended)
		}
		if _, err := await(p, w.confirm.Done()); err != nil {
			return err
		}
		if !w.confirm.Acked() && c.IsClosed() {
			return c.whyClosed(p, ended) // the end of the channel resolved it: unknown
		}
		o.answer(c.judge(o, w))
		p.timer.Reset(c.conn.config.Timeout)
	}
	return nil
}

// written is a message that went out; without a confirm, the channel did not take it.
type written struct {
	tag     string
	confirm *amqp091.DeferredConfirmation
}

func (c *confirmChannel) write(window []*outgoing, out []written, progress chan<- struct{}, stop <-chan struct{}) {
	for i, o := range window {
		select {
		case <-stop:
			return
		default:
		}
		c.count++
		tag := strconv.FormatUint(c.count, 10)
		o.publishing.Headers[returnHeader] = tag
		confirm, err := c.PublishWithDeferredConfirm(o.exchange, o.key, true, false, o.publishing)
		if err != nil {
			return // out[i] and progress tell
		}
		out[i] = written{tag, confirm}
		progress <- struct{}{}
	}
}

// judge is the answer to a message whose confirm has come. The broker sends the return of a message
// before its confirm, so it is in the channel by now if there is one.
func (c *confirmChannel) judge(o *outgoing, w written) error {
	for more := true; more; {
		select {
		case r, open := <-c.returns:
			if tag, ok := r.Headers[returnHeader].(string); ok {
				c.returned[tag] = r
			}
			more = open
		default:
			more = false
		}
	}
	r, returned := c.returned[w.tag]
	delete(c.returned, w.tag)
	switch {
	case !w.confirm.Acked():
		return ErrNacked
	case returned:
		return refuse(reasonNoRoute, "exchange %q, routing key %q: %d %s", o.exchange, o.key, r.ReplyCode, r.ReplyText)
	}
	return nil
}

// whyClosed waits for the cause, which comes just after the channel is marked closed, and for the
// writer, so that the messages may be sent anew.
func (c *confirmChannel) whyClosed(p patience, ended <-chan struct{}) error {
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

// patience is how long a batch waits: to the end of its context, while the broker takes messages,
// and until the timer has run out since something last happened.
type patience struct {
	ctx   context.Context
	conn  *connection
	timer *time.Timer
}

func await[T any](p patience, from <-chan T) (T, error) {
	var none T
	select {
	case v := <-from:
		return v, nil
	default:
	}
	select {
	case v := <-from:
		return v, nil
	case <-p.ctx.Done():
		return none, fmt.Errorf("rabbitmq: not confirmed: %w", context.Cause(p.ctx))
	case <-p.conn.whenBlocked():
		return none, ErrBlocked
	case <-p.timer.C:
		return none, ErrUnconfirmed
	}
}
