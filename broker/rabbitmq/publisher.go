package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	amqp091 "github.com/rabbitmq/amqp091-go"
)

// Publisher sends messages to RabbitMQ. It is a message.Publisher, and a forwarder.BatchPublisher.
// All methods are safe for concurrent use.
//
// Every message is persistent, confirmed by the broker, and refused (reason no_route) when no queue
// gets it. It connects when it is first used; while the broker is away every call answers soon, with
// an error.
type Publisher struct {
	config    Config
	log       *slog.Logger
	connector *connector
	channels  *channelPool
	memory    batchPool

	mu      sync.Mutex
	closed  bool
	batches sync.WaitGroup
	done    chan struct{} // closed when Close has finished
}

// NewPublisher makes a Publisher. It checks the configuration, all of it, and opens nothing.
func NewPublisher(config Config) (*Publisher, error) {
	config, err := config.withDefaults()
	if err != nil {
		return nil, err
	}
	c := newConnector(config, "millrace publisher")
	return &Publisher{
		config: config, log: config.Logger, connector: c, channels: newChannelPool(c, config),
		done: make(chan struct{}),
	}, nil
}

// Check reports whether the broker can be reached and lets us in. An error whose Setup method
// returns true says what is to be mended; any other may pass by itself. With a wrong password it
// takes up to 10 s: RabbitMQ is slow to say no.
func (p *Publisher) Check(ctx context.Context) error {
	return p.connector.check(ctx)
}

// Publish sends messages to a topic and returns when all of them are confirmed. The context is the
// first message's. If some failed, the error is that of the first of them, and those may be stored all
// the same; see PublishBatch for what the error tells.
func (p *Publisher) Publish(topic string, msgs ...*message.Message) error {
	if len(msgs) == 0 {
		return nil
	}
	ctx := context.Background() // if there is no message with a context
	if i := slices.IndexFunc(msgs, func(m *message.Message) bool { return m != nil }); i >= 0 {
		ctx = msgs[i].Context()
	}
	errs := p.PublishBatch(ctx, slices.Repeat([]string{topic}, len(msgs)), msgs)
	failed := slices.DeleteFunc(errs, func(err error) bool { return err == nil })
	switch {
	case len(failed) == 0:
		return nil
	case len(msgs) == 1:
		return failed[0]
	}
	return fmt.Errorf("rabbitmq: %d of %d messages not published, the first: %w", len(failed), len(msgs), failed[0])
}

// PublishBatch sends msgs[i] to topics[i], in that order, without waiting for each, and answers for
// each: nil means that the broker has stored it. It returns len(msgs) errors, always.
//
// An error with a method Refused that returns true is the message's own fault, and its Reason says
// what. Every other says that the broker could not be reached or did not answer in time; the message
// may be stored. An error with a method Setup that returns true says what is to be mended.
//
// When the broker closes the channel over a message, what was not confirmed is sent again one by one,
// and only the message that closes the channel once more is refused. So others may be delivered twice.
//
// When ctx ends it returns soon.
func (p *Publisher) PublishBatch(ctx context.Context, topics []string, msgs []*message.Message) []error {
	errs := make([]error, len(msgs))
	fail := func(err error) []error {
		for i := range errs {
			errs[i] = err
		}
		return errs
	}
	if len(topics) != len(msgs) {
		return fail(fmt.Errorf("rabbitmq: %d topics for %d messages", len(topics), len(msgs)))
	}
	if !p.begin() {
		return fail(ErrClosed)
	}
	defer p.batches.Done()

	b := p.memory.get(len(msgs))
	for i, msg := range msgs {
		if errs[i] = p.config.prepare(&b.messages[i], topics[i], msg); errs[i] == nil {
			b.prepared = append(b.prepared, &b.messages[i])
		}
	}
	if len(b.prepared) > 0 {
		p.deliver(ctx, b.prepared)
	}
	whole := true
	for i := range errs {
		if errs[i] == nil {
			errs[i] = b.messages[i].err
		}
		whole = whole && errs[i] == nil
	}
	if whole { // else some may be with a writer that hangs
		p.memory.put(b)
	}
	return errs
}

func (p *Publisher) begin() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	p.batches.Add(1)
	return true
}

// deliver answers every message.
func (p *Publisher) deliver(ctx context.Context, batch []*outgoing) {
	err := p.pipeline(ctx, batch)
	var closed closedByBroker
	if errors.As(err, &closed) {
		p.log.Warn("rabbitmq: the broker closed the channel over a message; sending one by one",
			"code", closed.cause.Code, "reason", closed.cause.Reason, "messages", len(unanswered(batch)))
		err = p.oneByOne(ctx, batch)
	}
	for _, o := range unanswered(batch) {
		o.answer(err)
	}
}

// pipeline sends the messages without waiting for each. Those that it leaves unanswered are unknown.
func (p *Publisher) pipeline(ctx context.Context, batch []*outgoing) error {
	ch, err := p.channels.get(ctx)
	if err != nil {
		return err
	}
	resolved := false
	defer func() { p.channels.put(ch, resolved) }()
	if err := p.declare(ctx, ch.conn, batch); err != nil {
		resolved = true // nothing was sent
		return err
	}
	for window := range slices.Chunk(unanswered(batch), p.config.Window) {
		if err := ch.send(ctx, window); err != nil {
			var closed closedByBroker
			if errors.As(err, &closed) && closed.cause.Code == amqp091.NotFound {
				ch.conn.forget() // an exchange is gone: declare it again
			}
			return err
		}
	}
	resolved = true
	return nil
}

// oneByOne finds the messages over which the broker closes the channel: each is alone on its channel.
func (p *Publisher) oneByOne(ctx context.Context, batch []*outgoing) error {
	for _, o := range unanswered(batch) {
		err := p.pipeline(ctx, []*outgoing{o})
		var closed closedByBroker
		switch {
		case errors.As(err, &closed):
			o.answer(refusalOf(closed.cause))
		case err != nil:
			return err
		}
	}
	return nil
}

// declare prepares the topics of a batch, and refuses what cannot be sent over this connection.
func (p *Publisher) declare(ctx context.Context, conn *connection, batch []*outgoing) error {
	topics := map[string]error{} // those declared, and why one could not be
	// Header frames cannot be split; the broker ends the connection over one that is too long.
	const overhead = 64
	limit := conn.Config.FrameSize - overhead
	for _, o := range batch {
		if o.done {
			continue
		}
		if limit > 0 && o.headerSize > limit {
			o.answer(refuse(reasonTooLarge, "the metadata has %d bytes, the broker's frames allow %d", o.headerSize, limit))
			continue
		}
		why, known := topics[o.topic]
		if !known {
			err := conn.declareFor(ctx, o.topic, p.config.params(o))
			var e *amqp091.Error
			switch {
			case err == nil:
			case !errors.As(err, &e) || !e.Server || conn.IsClosed():
				return err
			default:
				why = refuse(reasonTopology, "declare topic %q: %w", o.topic, err)
			}
			topics[o.topic] = why
		}
		if why != nil {
			o.answer(why)
		}
	}
	return nil
}

func unanswered(batch []*outgoing) []*outgoing {
	rest := make([]*outgoing, 0, len(batch))
	for _, o := range batch {
		if !o.done {
			rest = append(rest, o)
		}
	}
	return rest
}

// Close waits for the batches under way, at most Config.Timeout, and closes the connection. It always
// returns nil; later calls of Publish return ErrClosed.
func (p *Publisher) Close() error {
	p.mu.Lock()
	first := !p.closed
	p.closed = true
	p.mu.Unlock()
	if first {
		timer := time.AfterFunc(p.config.Timeout, p.connector.abort)
		p.batches.Wait()
		timer.Stop()
		p.connector.close()
		close(p.done)
	}
	<-p.done
	return nil
}
