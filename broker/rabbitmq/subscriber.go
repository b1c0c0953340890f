package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/ThreeDotsLabs/watermill/message"
)

// Subscriber receives messages from RabbitMQ. It is a message.Subscriber and a
// message.SubscribeInitializer. All methods are safe for concurrent use.
//
// A subscription hands out up to Config.Concurrency messages before the first is acknowledged, which
// Watermill's router handles concurrently. Messages of one key (metadata millrace_key) come one at a
// time and in order. Whatever is in the queue is handed out: what the Marshaler cannot read comes with
// metadata millrace_reason "malformed".
//
// A nacked message comes again after Config.NackDelay, doubled with each nack: one with a key from
// here, ahead of those behind it; any other from the queue, so that another consumer may try.
type Subscriber struct {
	config    Config
	log       *slog.Logger
	connector *connector

	ctx  context.Context // ends with Close
	stop context.CancelFunc
	done chan struct{} // closed when Close has finished

	mu            sync.Mutex
	closed        bool
	err           error
	subscriptions sync.WaitGroup
}

// NewSubscriber makes a Subscriber. It checks the configuration, all of it, and opens nothing.
func NewSubscriber(config Config) (*Subscriber, error) {
	config, err := config.withDefaults()
	if config.AMQP.Queue.GenerateName == nil {
		err = errors.Join(err, errors.New("rabbitmq: ConsumerGroup is missing: the consumers that share it share the messages"))
	}
	if err != nil {
		return nil, err
	}
	s := &Subscriber{
		config: config, log: config.Logger, connector: newConnector(config, "millrace subscriber"),
		done: make(chan struct{}),
	}
	// Subscriptions end by Close or by their own contexts.
	s.ctx, s.stop = context.WithCancel(context.Background())
	return s, nil
}

// Check reports whether the broker can be reached and lets us in; see Publisher.Check.
func (s *Subscriber) Check(ctx context.Context) error {
	return s.connector.check(ctx)
}

// Subscribe declares the topic's queue and starts to consume from it. If the broker is away it
// returns at once all the same, and goes on trying. A broker that does not let us in, or has the
// queue with other arguments, is an error.
//
// When ctx ends, no more messages are handed out, handlers may finish those that were, for
// Config.CloseTimeout, and then the channel is closed. Contexts of messages have the values of ctx
// and end with the ack or nack, not with ctx.
//
// A connection that is lost, and a consumer that the broker cancels, is made anew. The channel is also
// closed when the broker has said several times that it will not have us; Err tells why.
func (s *Subscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	if topic == "" {
		return nil, errors.New("rabbitmq: subscribe: the topic is empty")
	}
	if !s.begin() {
		return nil, ErrClosed
	}
	sub := newSubscription(ctx, s, topic)
	opening, cancel := context.WithTimeout(sub.ctx, 2*s.config.Timeout)
	defer cancel()
	first, err := sub.open(opening)
	if isSetup(err) {
		sub.end()
		return nil, fmt.Errorf("rabbitmq: subscribe to %q: %w", topic, err)
	}
	if err != nil {
		s.log.Warn("rabbitmq: subscription waits for the broker", "topic", topic, "error", err)
	}
	go sub.run(first)
	return sub.out, nil
}

// SubscribeInitialize declares the topic's queue, so that it gets what is published from now on.
func (s *Subscriber) SubscribeInitialize(topic string) error {
	if topic == "" {
		return errors.New("rabbitmq: initialize: the topic is empty")
	}
	if !s.begin() {
		return ErrClosed
	}
	defer s.subscriptions.Done()
	ctx, cancel := context.WithTimeout(s.ctx, 2*s.config.Timeout)
	defer cancel()
	conn, err := s.connector.get(ctx)
	if err == nil {
		err = declareQueue(ctx, conn, s.config.queueParams(topic))
	}
	if err != nil {
		return fmt.Errorf("rabbitmq: initialize %q: %w", topic, err)
	}
	return nil
}

func (s *Subscriber) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.subscriptions.Add(1)
	return true
}

// Err is why the first subscription died, or nil: none did, or they ended by Close or by their
// contexts.
func (s *Subscriber) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// fail remembers why a subscription died.
func (s *Subscriber) fail(topic string, err error) error {
	s.log.Error("rabbitmq: subscription ended", "topic", topic, "error", err)
	err = fmt.Errorf("rabbitmq: subscription to %q ended: %w", topic, err)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = err
	}
	return err
}

// Close ends all subscriptions as the end of their contexts would, waits for them, and closes the
// connection. It always returns nil.
func (s *Subscriber) Close() error {
	s.mu.Lock()
	first := !s.closed
	s.closed = true
	s.mu.Unlock()
	if first {
		s.stop()
		s.subscriptions.Wait()
		s.connector.close()
		close(s.done)
	}
	<-s.done
	return nil
}
