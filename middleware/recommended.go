package middleware

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace/dedup"
)

// Config is the configuration of Recommended. Only Dedup, or else Transactional, is required.
type Config struct {
	// Dedup remembers which messages were handled.
	Dedup dedup.Store
	// Transactional, made by the function of that name, takes the place of Dedup and Idempotent.
	Transactional message.HandlerMiddleware
	// Idempotent, Retry, Delayed and Poison configure Idempotent, Retry, DelayedRetry and PoisonQueue.
	// Without a Delayed.Store there is no delayed retry. Without a Poison.Store and a Poison.Publisher
	// there is no poison queue: a message that always fails comes again for ever.
	Idempotent IdempotentConfig
	Retry      RetryConfig
	Delayed    DelayedConfig
	Poison     PoisonConfig
	// Confirm, if its Group is set, configures Confirm.
	Confirm ConfirmConfig
	// Rules say what the errors of handlers mean: see Classify.
	Rules []Rule
	// Timeout is the time that one call of the handler may take. Default 20 s, less than the lease.
	Timeout time.Duration

	// AckDeadline is how long the broker waits for an acknowledgement before it gives the message to
	// somebody else: consumer_timeout on RabbitMQ, MaxIdle on Redis Streams without heartbeat. Default
	// 30 min, RabbitMQ's.
	AckDeadline time.Duration
	// MaxAge is how long after its first delivery a copy of a message may still come. If set, DoneTTL has
	// to be longer.
	MaxAge time.Duration

	// Logger is used by those middlewares that have none of their own. Default: none.
	Logger *slog.Logger
}

// Recommended returns the chain in the order in which it has to be added, outermost first: PoisonQueue and
// DelayedRetry and Confirm (if configured), Idempotent, Retry, Timeout, Classify (if there are rules), Recoverer. With
// Transactional it is PoisonQueue, DelayedRetry, Confirm, Retry, Timeout, Classify, Transactional, Recoverer.
//
// The retries are inside the claim, so that one lease covers them; but each is a transaction of its
// own. DelayedRetry and the poison queue are outside, so that a message that was put aside is not
// remembered as done. The numbers are checked against each other, and the error names every
// contradiction.
func Recommended(cfg Config) ([]message.HandlerMiddleware, error) {
	cfg = cfg.withDefaults()
	var chain []message.HandlerMiddleware
	var errs []error
	add := func(m message.HandlerMiddleware, err error) {
		chain, errs = append(chain, m), append(errs, err)
	}
	if cfg.poisons() {
		add(PoisonQueue(cfg.Poison))
	}
	if cfg.defers() {
		add(DelayedRetry(cfg.Delayed))
	}
	if cfg.confirms() {
		add(Confirm(cfg.Confirm))
	}
	if cfg.Transactional == nil {
		add(Idempotent(cfg.Dedup, cfg.Idempotent))
	}
	add(Retry(cfg.Retry))
	add(Timeout(cfg.Timeout))
	if len(cfg.Rules) > 0 {
		add(Classify(cfg.Rules...))
	}
	if cfg.Transactional != nil {
		add(cfg.Transactional, nil)
	}
	add(Recoverer, cfg.contradictions())
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return chain, nil
}

func (c Config) poisons() bool {
	return c.Poison.Publisher != nil || c.Poison.Topic != "" || c.Poison.Store != nil
}

func (c Config) confirms() bool { return c.Confirm.Group != "" || c.Confirm.Publisher != nil }

func (c Config) defers() bool { return c.Delayed.Store != nil }

func (c Config) withDefaults() Config {
	orDefault(&c.Timeout, 20*time.Second)
	orDefault(&c.AckDeadline, 30*time.Minute)
	for _, log := range []**slog.Logger{&c.Idempotent.Logger, &c.Delayed.Logger, &c.Confirm.Logger, &c.Poison.Logger} {
		if *log == nil {
			*log = c.Logger
		}
	}
	if c.poisons() {
		orDefault(&c.Poison.Timeout, 10*time.Second)
	}
	if c.confirms() {
		orDefault(&c.Confirm.Timeout, 10*time.Second)
	}
	if c.defers() {
		c.Delayed = c.Delayed.withDefaults()
		if c.Poison.Group == "" {
			c.Poison.Group = c.Delayed.Group
		}
	}
	return c
}

// contradictions compares numbers that are each right for themselves.
func (c Config) contradictions() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf("middleware: "+format, args...)) }
	idem, retry := c.Idempotent.withDefaults(), c.Retry.withDefaults()
	if c.Dedup != nil && c.Transactional != nil {
		bad("Dedup and Transactional are both set: use one")
	}
	if c.AckDeadline < 0 || c.MaxAge < 0 {
		bad("AckDeadline %s and MaxAge %s must not be negative", c.AckDeadline, c.MaxAge)
	}
	if c.Transactional == nil && idem.Lease <= c.Timeout {
		bad("Lease %s is not longer than Timeout %s: a handler that hangs would lose its claim before it is stopped", idem.Lease, c.Timeout)
	}
	worst := idem.BusyWait + retry.Budget + c.Timeout + c.Poison.Timeout
	if c.confirms() {
		worst += c.Confirm.Timeout
	}
	if c.defers() {
		worst += 2 * c.Delayed.Timeout // it is asked before and after
	}
	if worst >= c.AckDeadline {
		bad("one delivery may take %s (BusyWait, Retry.Budget, Timeout, Poison.Timeout, Confirm.Timeout, and twice Delayed.Timeout), the broker waits for %s (AckDeadline) "+
			"and would deliver the message a second time meanwhile", worst, c.AckDeadline)
	}
	if c.Transactional == nil && c.MaxAge > 0 && idem.DoneTTL <= c.MaxAge {
		bad("DoneTTL %s is not longer than MaxAge %s: a late copy would be handled again", idem.DoneTTL, c.MaxAge)
	}
	errs = append(errs, c.contradictionsOfDelays(idem, retry))
	return errors.Join(errs...)
}

// contradictionsOfDelays are those of DelayedRetry with its neighbours.
func (c Config) contradictionsOfDelays(idem IdempotentConfig, retry RetryConfig) error {
	if !c.defers() {
		return nil
	}
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf("middleware: "+format, args...)) }
	if c.Delayed.MaxAttempts <= retry.MaxAttempts {
		bad("Delayed.MaxAttempts %d, the total, is not more than Retry.MaxAttempts %d, those of one delivery: no message would ever be deferred",
			c.Delayed.MaxAttempts, retry.MaxAttempts)
	}
	if longest := c.Delayed.longest(); c.Transactional == nil && idem.DoneTTL <= longest {
		bad("DoneTTL %s is not longer than the longest delay %s: the record of the message would be forgotten while it waits", idem.DoneTTL, longest)
	}
	if !c.poisons() {
		bad("Delayed without Poison: after its last attempt a message would have nowhere to go")
	}
	if c.Poison.Store != nil && c.Poison.Group != c.Delayed.Group {
		bad("Poison.Group %q is not Delayed.Group %q: a replay would reach nobody", c.Poison.Group, c.Delayed.Group)
	}
	return errors.Join(errs...)
}
