package redisstreams

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace/internal/died"
)

// Subscriber reads messages from Redis Streams, as a member of a consumer group or, with no group
// configured, for itself. It is safe for concurrent use; each Subscribe call is a member of its own.
//
// An entry that the marshaler does not understand is delivered as a message whose metadata
// millrace_reason is "malformed" and millrace_error says why; its id is the topic, "/" and the
// entry's id, its payload a JSON object of the entry's fields, the values in base64. A
// handler that acknowledges it ends it.
type Subscriber struct {
	cfg    Config
	client connection

	mu      sync.Mutex
	closed  bool
	members int
	err     error
	closing chan struct{}
	running sync.WaitGroup
}

var (
	_ message.Subscriber           = (*Subscriber)(nil)
	_ message.SubscribeInitializer = (*Subscriber)(nil)
)

// NewSubscriber checks the configuration. It does not connect.
func NewSubscriber(cfg Config) (*Subscriber, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	client, err := cfg.connect()
	if err != nil {
		return nil, err
	}
	return &Subscriber{cfg: cfg, client: client, closing: make(chan struct{})}, nil
}

// Subscribe reads the stream until ctx ends or Close is called. Then nothing more is handed out, what
// handlers have may be finished (Config.CloseTimeout), the rest is given back to the group, and the channel is closed.
//
// The group is made if it is not there, and made again when it is lost. A Redis that cannot be reached
// is waited for, also now. Wrong credentials, and a topic that is not a stream, are errors (Setup() bool
// is true); should that happen later for longer than 10 s, the channel is closed and Err tells why.
//
// A message's context has the values of ctx. It ends when the message was acknowledged or nacked, when
// another member has taken the message over, and when handlers are given up.
func (s *Subscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	if topic == "" {
		return nil, errors.New("redisstreams: subscribe: topic is empty")
	}
	sub, err := s.begin(ctx, topic)
	if err != nil {
		return nil, err
	}
	if err := sub.prepare(ctx); err != nil {
		if isSetup(err) {
			sub.cancel()
			s.running.Done()
			return nil, fmt.Errorf("subscribe to %q: %w", topic, err)
		}
		sub.log.WarnContext(ctx, "redisstreams: Redis cannot be reached, waiting for it", "error", err)
	}
	go func() {
		defer s.running.Done()
		if err := sub.run(); err != nil {
			err = fmt.Errorf("subscription to %q: %w", topic, err)
			s.fail(err)
			died.Report(ctx, err)
		}
		close(sub.out)
	}()
	return sub.out, nil
}

// SubscribeInitialize makes the stream and the consumer group, so that messages published from now
// on are kept for the group. Without a group there is nothing to make.
func (s *Subscriber) SubscribeInitialize(topic string) error {
	if s.cfg.ConsumerGroup == "" {
		return nil
	}
	// The interface has no context.
	ctx, cancel := context.WithTimeout(context.Background(), s.cfg.Timeout)
	defer cancel()
	g := group{client: s.client, topic: topic, name: s.cfg.ConsumerGroup}
	if err := g.create(ctx, s.cfg.StartID); err != nil {
		return fmt.Errorf("initialize %q: %w", topic, err)
	}
	return nil
}

// Check asks the server (each master of a cluster) whether it is fit to keep messages. A version below
// 6.2, a memory policy that evicts streams and refused credentials are errors with Setup() true;
// appendonly being off, and a server that does not tell its configuration, are warnings in the log.
func (s *Subscriber) Check(ctx context.Context) error {
	return check(ctx, s.client.UniversalClient, s.cfg.Logger)
}

// Err is the reason why a subscription ended though nobody ended it; nil if there is none.
func (s *Subscriber) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Close ends all subscriptions as the end of their contexts does, waits for that, and closes the
// client if it was made from a URL.
func (s *Subscriber) Close() error {
	s.mu.Lock()
	first := !s.closed
	s.closed = true
	if first {
		close(s.closing)
	}
	s.mu.Unlock()
	s.running.Wait()
	if !first {
		return nil
	}
	return s.client.close()
}

func (s *Subscriber) begin(ctx context.Context, topic string) (*subscription, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrClosed
	}
	s.running.Add(1)
	s.members++
	return newSubscription(ctx, s.cfg, s.client.UniversalClient, topic, fmt.Sprintf("%s-%d", s.cfg.Consumer, s.members), s.closing), nil
}

func (s *Subscriber) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = err
	}
}
