package millrace

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace/internal/died"
)

// ErrSubscriptionEnded says that a subscription of the router ended although nobody asked it to.
var ErrSubscriptionEnded = errors.New("millrace: subscription ended")

// RunRouter runs a Watermill router until ctx ends or the router is closed, and then returns nil. Unlike
// the router's own Run, it does not take the death of a subscription for an orderly end: when one
// ends by itself it closes the router, which lets the handlers finish, and returns
// ErrSubscriptionEnded, wrapping the cause where the subscriber tells (millrace's do).
//
// A router that does not start (a plugin or a subscription failed) gives Run's error.
func RunRouter(ctx context.Context, router *message.Router) error {
	w := &subscriptions{router: router}
	router.AddSubscriberDecorators(func(sub message.Subscriber) (message.Subscriber, error) {
		return &watched{Subscriber: sub, all: w}, nil
	})
	err := router.Run(died.With(ctx, w.because))
	w.closer.Wait()
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil && w.cause != nil { // whoever died closed the router first
		return fmt.Errorf("%w: %w", ErrSubscriptionEnded, w.cause)
	}
	return w.err
}

// subscriptions are all those of one router.
type subscriptions struct {
	router *message.Router
	closer sync.WaitGroup

	mu      sync.Mutex
	closing bool // the router closes its subscribers
	cause   error
	err     error
}

// because remembers the first cause that a subscriber tells.
func (s *subscriptions) because(cause error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cause == nil {
		s.cause = cause
	}
}

// ended closes the router unless it is closing already.
func (s *subscriptions) ended(topic string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing || s.err != nil {
		return
	}
	s.err = fmt.Errorf("%w: topic %q", ErrSubscriptionEnded, topic)
	if s.cause != nil {
		s.err = fmt.Errorf("%w: %w", s.err, s.cause)
	}
	s.closer.Go(func() { _ = s.router.Close() }) // Run waits for it; its error is a handler's timeout
}

// watched is a subscriber whose end is noticed.
type watched struct {
	message.Subscriber
	all   *subscriptions
	pumps sync.WaitGroup
}

func (w *watched) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	in, err := w.Subscriber.Subscribe(ctx, topic)
	if err != nil {
		return nil, err
	}
	out := make(chan *message.Message)
	w.pumps.Go(func() {
		defer close(out)
		for msg := range in {
			out <- msg
		}
		if ctx.Err() == nil {
			w.all.ended(topic)
		}
	})
	return out, nil
}

// Close is called by the router alone. The subscriber may be shared with other handlers, whose
// subscriptions end with it.
func (w *watched) Close() error {
	w.all.mu.Lock()
	w.all.closing = true
	w.all.mu.Unlock()
	err := w.Subscriber.Close()
	w.pumps.Wait()
	return err
}
