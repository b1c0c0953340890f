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
	// Idempotent, Retry and Poison configure the middlewares of those names. Without a
	// Poison.Publisher there is no poison queue: a message that always fails comes again for ever.
	Idempotent IdempotentConfig
	Retry      RetryConfig
	Poison     PoisonConfig
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

// Recommended returns the chain in the order in which it has to be added, outermost first: PoisonQueue
// (if configured), Idempotent, Retry, Timeout, Recoverer. With Transactional it is PoisonQueue, Retry,
// Timeout, Transactional, Recoverer.
//
// The retries are inside the claim, so that one lease covers them; but each is a transaction of its
// own. The poison queue is outside, so that a message given up is not remembered as done and can be
// replayed. The numbers are checked against each other, and the error names every contradiction.
func Recommended(cfg Config) ([]message.HandlerMiddleware, error) {
	orDefault(&cfg.Timeout, 20*time.Second)
	orDefault(&cfg.AckDeadline, 30*time.Minute)
	if cfg.Idempotent.Logger == nil {
		cfg.Idempotent.Logger = cfg.Logger
	}
	if cfg.Poison.Logger == nil {
		cfg.Poison.Logger = cfg.Logger
	}

	var chain []message.HandlerMiddleware
	var errs []error
	add := func(m message.HandlerMiddleware, err error) {
		chain, errs = append(chain, m), append(errs, err)
	}
	if cfg.Poison.Publisher != nil || cfg.Poison.Topic != "" {
		orDefault(&cfg.Poison.Timeout, 10*time.Second)
		add(PoisonQueue(cfg.Poison))
	}
	if cfg.Transactional == nil {
		add(Idempotent(cfg.Dedup, cfg.Idempotent))
	}
	add(Retry(cfg.Retry))
	add(Timeout(cfg.Timeout))
	if cfg.Transactional != nil {
		add(cfg.Transactional, nil)
	}
	add(Recoverer, cfg.contradictions())
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return chain, nil
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
	if worst := idem.BusyWait + retry.Budget + c.Timeout + c.Poison.Timeout; worst >= c.AckDeadline {
		bad("one delivery may take %s (BusyWait, Retry.Budget, Timeout, Poison.Timeout), the broker waits for %s (AckDeadline) "+
			"and would deliver the message a second time meanwhile", worst, c.AckDeadline)
	}
	if c.Transactional == nil && c.MaxAge > 0 && idem.DoneTTL <= c.MaxAge {
		bad("DoneTTL %s is not longer than MaxAge %s: a late copy would be handled again", idem.DoneTTL, c.MaxAge)
	}
	return errors.Join(errs...)
}
