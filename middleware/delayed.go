package middleware

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace/internal/backoff"
	"github.com/millrace-go/millrace/internal/delivery"
	"github.com/millrace-go/millrace/internal/meta"
	"github.com/millrace-go/millrace/store"
)

// DelayedConfig is the configuration of DelayedRetry. Only Store is required.
type DelayedConfig struct {
	// Store keeps the messages. delayed.Subscriber hands them out again, from the same store.
	Store store.Delayed
	// Group is the name under which messages are stored. Default: the name of the router's handler. The
	// same as that of delayed.Subscriber.
	Group string
	// MaxAttempts is how often the handler is called in all: by Retry, and in all deliveries together.
	// Default 10.
	MaxAttempts int
	// Delays, if set, is the table of waits: the first before the message comes back for the first time, and
	// so on; the last is used for all that follow.
	Delays []time.Duration
	// InitialDelay and MaxDelay are used without a table: the wait is a random time of up to
	// InitialDelay, which doubles with each return up to MaxDelay. Default 30 s and 1 h.
	InitialDelay, MaxDelay time.Duration
	// Ordered has later messages of a key wait while one of the key is stored, so that they are handled
	// in the order in which they came. It needs one consumer at a time for each key, as
	// millrace's subscribers see to within one process.
	Ordered bool
	// Key is what order is kept by. "" = none. Default: the metadata that outbox.WithKey sets.
	Key func(*message.Message) string
	// Timeout bounds each call of the store. Default 5 s.
	Timeout time.Duration
	// Logger receives what was deferred, without payload and metadata. Default: none.
	Logger *slog.Logger
	// OnDeferred is called, if set, when a message has been stored, or given back to the store. Err is
	// nil if it only waits for an earlier one of its key.
	OnDeferred func(msg *message.Message, attempt int, err error, delay time.Duration)
}

// ErrAttemptsSpent: the handler was called as often as it may, and the message could not be given up in
// time. It is permanent; its reason is that of the last failure.
var ErrAttemptsSpent = errors.New("middleware: the handler has been called as often as it may")

// ErrWrongHandler: a message that was stored for one handler came to another. Give delayed.Subscriber the
// name of the handler that it is for.
var ErrWrongHandler = errors.New("middleware: the message was stored for another handler")

// DelayedRetry puts a message aside whose handler failed: it is stored for this handler alone, and then
// acknowledged, so that the queue goes on. When its time has come delayed.Subscriber hands it to the same
// handler again, in whichever process runs one.
//
// Attempts are counted in the store, before each begins; those of the delivery that came from the
// broker when it has failed. After MaxAttempts, and on a Permanent error, the error goes on to
// PoisonQueue. RetryAfter makes the wait at least as long as it says. After NotYet the message comes
// again without an attempt being counted.
//
// A copy that the broker delivers of a message that is stored, or is a dead letter of the same store, is
// acknowledged without running. If the store cannot be asked, nothing runs: the message is nacked.
//
// It belongs outside of Idempotent and Retry and inside of PoisonQueue: see Recommended. Without these
// two inside, a copy that arrives while the message is handled for the first time runs and counts for
// itself. Without Recoverer inside, a message whose process died in its last attempt is handled once
// more.
func DelayedRetry(cfg DelayedConfig) (message.HandlerMiddleware, error) {
	cfg = cfg.withDefaults()
	if err := cfg.check(); err != nil {
		return nil, err
	}
	d := &delayedRetry{cfg: cfg, consumer: consumer{name: cfg.Group}}
	return func(next message.HandlerFunc) message.HandlerFunc {
		return func(msg *message.Message) ([]*message.Message, error) {
			return delivery.Run(msg, func(rec *delivery.Record) ([]*message.Message, error) {
				return d.handle(msg, rec, next)
			})
		}
	}, nil
}

func (c DelayedConfig) withDefaults() DelayedConfig {
	if c.MaxAttempts == 0 {
		c.MaxAttempts = 10
	}
	orDefault(&c.InitialDelay, 30*time.Second)
	orDefault(&c.MaxDelay, max(time.Hour, c.InitialDelay))
	orDefault(&c.Timeout, 5*time.Second)
	if c.Key == nil {
		c.Key = func(msg *message.Message) string { return msg.Metadata.Get(meta.Key) }
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

func (c DelayedConfig) check() error {
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("middleware: DelayedRetry: "+format, args...))
	}
	if c.Store == nil {
		bad("no Store")
	}
	if c.Group != "" {
		if err := store.CheckGroup(c.Group); err != nil {
			bad("Group: %w", err)
		}
	}
	if c.MaxAttempts < 0 {
		bad("MaxAttempts %d is negative", c.MaxAttempts)
	}
	for i, d := range c.Delays {
		if d < 0 {
			bad("Delays[%d] %s is negative", i, d)
		}
	}
	if c.InitialDelay < 0 || c.Timeout < 0 {
		bad("InitialDelay %s and Timeout %s must not be negative", c.InitialDelay, c.Timeout)
	}
	if c.MaxDelay < c.InitialDelay {
		bad("MaxDelay %s is less than InitialDelay %s", c.MaxDelay, c.InitialDelay)
	}
	return errors.Join(errs...)
}

// wait is the time before the n-th return, from 1.
func (c DelayedConfig) wait(n int) time.Duration {
	if len(c.Delays) > 0 {
		return c.Delays[min(max(n, 1), len(c.Delays))-1]
	}
	return backoff.Policy{Base: c.InitialDelay, Max: c.MaxDelay}.Delay(n)
}

// longest is the longest wait.
func (c DelayedConfig) longest() time.Duration {
	if len(c.Delays) > 0 {
		return slices.Max(c.Delays)
	}
	return c.MaxDelay
}

type delayedRetry struct {
	cfg      DelayedConfig
	consumer consumer
}

// ask calls the store within its deadline.
func (d *delayedRetry) ask(ctx context.Context, f func(context.Context) error) error {
	// Detached: a delivery that was cancelled at shutdown is still put aside, or acknowledged.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), d.cfg.Timeout)
	defer cancel()
	if err := f(ctx); err != nil {
		return postponed(fmt.Errorf("%w: %w", ErrRetryStoreUnavailable, err), refusedDelay)
	}
	return nil
}

// ErrRetryStoreUnavailable: it cannot be found out whether a message is stored, or it cannot be stored. It
// is nacked.
var ErrRetryStoreUnavailable = errors.New("middleware: the store of delayed messages cannot be asked")
