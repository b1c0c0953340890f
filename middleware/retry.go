package middleware

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace/internal/backoff"
	"github.com/millrace-go/millrace/internal/delivery"
)

// RetryConfig is the configuration of Retry. The zero value is right for blips.
type RetryConfig struct {
	// MaxAttempts is how often the handler is called in one delivery, the first time included.
	// Default 3.
	MaxAttempts int
	// InitialDelay is the longest wait before the second attempt; it doubles with each. Default 100 ms.
	InitialDelay time.Duration
	// MaxDelay is the longest wait before any attempt. Default 5 s, at least InitialDelay.
	MaxDelay time.Duration
	// Budget is the time after which no further attempt is begun, counted from the start of the first.
	// With the time that one attempt takes it has to stay below the time after which the broker gives
	// the message to somebody else. Default 30 s.
	Budget time.Duration
	// GiveUp, if set, names the errors that no attempt will change, beside those marked Permanent. For
	// rules by kind of error and by handler see Classify.
	GiveUp func(error) bool
	// OnRetry, if set, is called before the wait for the next attempt, with the one that failed.
	OnRetry func(msg *message.Message, attempt int, err error, wait time.Duration)
}

// Retry calls the handler again when it fails, after exponential waits with full jitter.
//
// It gives up after MaxAttempts, at Budget, before the deadline of the message's context, on a Permanent
// error, and when that context ends; the handler's last error is returned then. RetryAfter(err, d)
// makes the wait at least d long; if that is beyond the budget the message comes again after d: from
// the store of DelayedRetry, or else because it is nacked.
//
// The number of the attempt is in the handler's context: see Attempt. With DelayedRetry around it the
// calls in all deliveries are counted; otherwise those in one delivery.
func Retry(cfg RetryConfig) (message.HandlerMiddleware, error) {
	cfg = cfg.withDefaults()
	if err := cfg.check(); err != nil {
		return nil, err
	}
	return func(next message.HandlerFunc) message.HandlerFunc {
		return func(msg *message.Message) ([]*message.Message, error) {
			return delivery.Run(msg, func(rec *delivery.Record) ([]*message.Message, error) {
				return cfg.run(msg, rec, next)
			})
		}
	}, nil
}

func (c RetryConfig) withDefaults() RetryConfig {
	if c.MaxAttempts == 0 {
		c.MaxAttempts = 3
	}
	orDefault(&c.InitialDelay, 100*time.Millisecond)
	orDefault(&c.MaxDelay, max(5*time.Second, c.InitialDelay))
	orDefault(&c.Budget, 30*time.Second)
	return c
}

func (c RetryConfig) check() error {
	var errs []error
	if c.MaxAttempts < 0 {
		errs = append(errs, fmt.Errorf("middleware: Retry: MaxAttempts %d is negative", c.MaxAttempts))
	}
	for name, d := range map[string]time.Duration{"InitialDelay": c.InitialDelay, "Budget": c.Budget} {
		if d < 0 {
			errs = append(errs, fmt.Errorf("middleware: Retry: %s %s is negative", name, d))
		}
	}
	if c.MaxDelay < c.InitialDelay {
		errs = append(errs, fmt.Errorf("middleware: Retry: MaxDelay %s is less than InitialDelay %s", c.MaxDelay, c.InitialDelay))
	}
	return errors.Join(errs...)
}

func (c RetryConfig) run(msg *message.Message, rec *delivery.Record, next message.HandlerFunc) ([]*message.Message, error) {
	ctx := msg.Context()
	defer msg.SetContext(ctx)
	begin := time.Now()
	for call := 1; ; call++ {
		attempt, last, err := rec.Begin(ctx)
		switch {
		case errors.Is(err, delivery.ErrElsewhere):
			return nil, nil
		case err != nil:
			return nil, err
		}
		msg.SetContext(context.WithValue(ctx, attemptKey{}, attempt))
		rec.Set(delivery.Open)
		out, err := next(msg)
		if err = rec.Judge(err); err == nil {
			return out, nil
		}
		if isPostponed(err) || ctx.Err() != nil {
			return nil, err
		}
		rec.Note(failure(attempt, err))
		if c.GiveUp != nil && c.GiveUp(err) {
			return nil, Permanent(WithReason(err, Reason(err)))
		}
		if last || call >= c.MaxAttempts || IsPermanent(err) {
			return nil, err
		}
		wait := max(Delay(err), backoff.Policy{Base: c.InitialDelay, Max: c.MaxDelay}.Delay(call))
		if deadline, ok := ctx.Deadline(); time.Since(begin)+wait > c.Budget || (ok && time.Until(deadline) < wait) {
			if d := Delay(err); d > 0 && !rec.Counted() {
				return nil, postponed(err, d) // it is too early for the verdict that the message is bad
			}
			return nil, err
		}
		if c.OnRetry != nil {
			c.OnRetry(msg, attempt, err, wait)
		}
		backoff.Sleep(ctx, wait)
		if ctx.Err() != nil {
			return nil, err
		}
	}
}

type attemptKey struct{}

// Attempt is the number of this call of the handler, from 1; 0 without Retry.
func Attempt(ctx context.Context) int {
	n, _ := ctx.Value(attemptKey{}).(int)
	return n
}
