package delayed

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace/store"
)

// Config is the configuration of Subscriber. Only Handler is required.
type Config struct {
	// Handler is the name of the router's handler that the subscriber is for.
	Handler string
	// Group is the name under which its messages are stored: that of middleware.DelayedConfig. Default:
	// Handler.
	Group string
	// Concurrency is how many stored messages may be with the handler at a time, beside those of the
	// broker. Default 10.
	Concurrency int
	// Lease is how long a message outlives the process that took it. While a message is handled it is
	// renewed three times per lease. Default 30 s, at least 100 ms.
	Lease time.Duration
	// Poll is how often the store is asked when nothing is known to be due earlier. Default 1 s.
	Poll time.Duration
	// Timeout bounds each call of the store. Default 5 s, at most a third of the lease.
	Timeout time.Duration
	// CloseTimeout is how long Close, and the end of the subscription's context, wait for handlers.
	// Default 30 s.
	CloseTimeout time.Duration
	// Logger receives what is unusual, never payloads or metadata. Default: none.
	Logger *slog.Logger
}

func (c Config) withDefaults() Config {
	if c.Group == "" {
		c.Group = c.Handler
	}
	if c.Concurrency == 0 {
		c.Concurrency = 10
	}
	orDefault := func(d *time.Duration, value time.Duration) {
		if *d == 0 {
			*d = value
		}
	}
	orDefault(&c.Lease, 30*time.Second)
	orDefault(&c.Poll, time.Second)
	orDefault(&c.Timeout, min(5*time.Second, c.Lease/3))
	orDefault(&c.CloseTimeout, 30*time.Second)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

func (c Config) check() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf("delayed: "+format, args...)) }
	if c.Handler == "" {
		bad("Handler is empty: give the name of the router's handler")
	} else if err := store.CheckGroup(c.Group); err != nil {
		bad("Group: %w", err)
	}
	if c.Concurrency < 0 {
		bad("Concurrency %d is negative", c.Concurrency)
	}
	if c.Lease < 100*time.Millisecond {
		bad("Lease %s: at least 100ms", c.Lease)
	}
	if c.Poll < 0 || c.CloseTimeout < 0 {
		bad("Poll %s and CloseTimeout %s must not be negative", c.Poll, c.CloseTimeout)
	}
	if c.Timeout < 0 || c.Timeout > c.Lease/3 {
		bad("Timeout %s: between 0 and a third of Lease %s", c.Timeout, c.Lease)
	}
	return errors.Join(errs...)
}

// ErrLeaseLost is the cause of a stored message's context when its lease ended, and another process may
// have taken the message.
var ErrLeaseLost = errors.New("delayed: the lease of the stored message ended")

// Subscriber returns a subscriber that hands out the messages of sub and, beside them, those that are
// stored for the handler and due. It is for that one handler. Closing it closes sub, as with every
// decorator of Watermill: the router knows no other.
//
// A stored message that is acknowledged is forgotten, or waits again if DelayedRetry said so. One that is
// nacked waits for as long as the middlewares ask, at least a second. When the process dies with a
// message, it is due again when its lease ends.
//
// A store that is not set up (store.ErrSetup) ends the subscription; millrace.RunRouter returns the cause. A
// store that is away is waited for, and the messages of sub go on.
func Subscriber(sub message.Subscriber, st store.Delayed, cfg Config) (message.Subscriber, error) {
	cfg = cfg.withDefaults()
	errs := []error{cfg.check()}
	if sub == nil {
		errs = append(errs, errors.New("delayed: no subscriber"))
	}
	if st == nil {
		errs = append(errs, errors.New("delayed: no store"))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	s := &subscriber{sub: sub, store: st, cfg: cfg, closing: make(chan struct{})}
	if init, ok := sub.(message.SubscribeInitializer); ok {
		return initializing{s, init}, nil
	}
	return s, nil
}

// initializing passes on what some subscribers can do beside.
type initializing struct {
	*subscriber
	message.SubscribeInitializer
}

type subscriber struct {
	sub   message.Subscriber
	store store.Delayed
	cfg   Config

	closing chan struct{}
	mu      sync.Mutex
	closed  bool
	running sync.WaitGroup
}

// Subscribe implements message.Subscriber.
func (s *subscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errors.New("delayed: the subscriber is closed")
	}
	ours, cancel := context.WithCancel(ctx)
	in, err := s.sub.Subscribe(ours, topic)
	if err != nil {
		cancel()
		return nil, err
	}
	sub := newSubscription(ours, cancel, s)
	s.running.Go(func() { sub.run(in) })
	return sub.out, nil
}

// Close takes no more messages, waits for handlers up to CloseTimeout, and closes the subscriber within.
func (s *subscriber) Close() error {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.closing)
	}
	s.mu.Unlock()
	err := s.sub.Close()
	s.running.Wait()
	return err
}
