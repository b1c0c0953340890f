package rabbitmq

import (
	"slices"
	"sync/atomic"

	amqp091 "github.com/rabbitmq/amqp091-go"
)

// flight is a window of messages on its way over a channel: one goroutine writes them, another waits for
// their confirms.
type flight struct {
	ch     *confirmChannel
	window []*outgoing

	confirms  []*amqp091.DeferredConfirmation // of those that are written
	written   atomic.Int64                    // how many the channel has taken
	ended     chan struct{}                   // closed when the writer is through
	abandoned atomic.Bool

	front int // confirms in a row, from the first, that were seen to have come
}

func newFlight(c *confirmChannel, window []*outgoing) *flight {
	return &flight{
		ch: c, window: window, ended: make(chan struct{}),
		confirms: make([]*amqp091.DeferredConfirmation, len(window)),
	}
}

// write publishes the messages, until the channel takes no more of them.
func (f *flight) write() {
	defer close(f.ended)
	f.ch.conn.raw.cork()
	defer f.ch.conn.raw.uncork()
	for i, o := range f.window {
		if f.abandoned.Load() {
			return
		}
		o.publishing.Headers[returnHeader] = f.ch.numbers[i]
		confirm, err := f.ch.PublishWithDeferredConfirm(o.exchange, o.key, true, false, o.publishing)
		if err != nil {
			return
		}
		f.confirms[i] = confirm
		f.written.Store(int64(i + 1))
	}
}

// abandon makes the writer end soon: nobody waits for its messages.
func (f *flight) abandon() { f.abandoned.Store(true) }

// wait waits until all is written that the channel takes, and all of that is resolved. It waits for the last
// confirm first: when that has come the others have as well, nearly always, and nobody was woken for each.
func (f *flight) wait(p *patience) error {
	if _, err := await(p, f.ended); err != nil {
		return err
	}
	for _, confirm := range slices.Backward(f.confirms[:f.written.Load()]) {
		if _, err := await(p, confirm.Done()); err != nil {
			return err
		}
	}
	return nil
}

// progress grows with each message that is written and, of the first ones, with each that is resolved.
func (f *flight) progress() int {
	n := int(f.written.Load())
	for f.front < n && resolved(f.confirms[f.front]) {
		f.front++
	}
	return n + f.front
}

func resolved(confirm *amqp091.DeferredConfirmation) bool {
	select {
	case <-confirm.Done():
		return true
	default:
		return false
	}
}

// answer answers the messages whose confirms have come, and reports whether these are all.
func (f *flight) answer() bool {
	n := int(f.written.Load())
	whole := n == len(f.window)
	for i, o := range f.window[:n] {
		confirm := f.confirms[i]
		if !resolved(confirm) || !confirm.Acked() && f.ch.IsClosed() {
			whole = false // the end of the channel resolves what is not confirmed: unknown
			continue
		}
		o.answer(f.ch.judge(o, f.ch.numbers[i].(string), confirm.Acked()))
	}
	return whole
}

// judge is the answer to a message whose confirm has come. The broker sends the return of a message
// before its confirm, so it is in the channel by now if there is one.
func (c *confirmChannel) judge(o *outgoing, number string, acked bool) error {
	for len(c.returns) > 0 {
		r := <-c.returns
		if number, ok := r.Headers[returnHeader].(string); ok {
			c.returned[number] = r
		}
	}
	r, returned := c.returned[number]
	delete(c.returned, number)
	switch {
	case !acked:
		return ErrNacked
	case returned:
		return refuse(reasonNoRoute, "exchange %q, routing key %q: %d %s", o.exchange, o.key, r.ReplyCode, r.ReplyText)
	}
	return nil
}
