package middleware

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace/dedup"
	"github.com/millrace-go/millrace/internal/backoff"
)

// guard is an Idempotent middleware: what its deliveries share.
type guard struct {
	store    dedup.Store
	cfg      IdempotentConfig
	consumer consumer
	breaker  breaker

	checked  atomic.Bool
	checking sync.Mutex
}

// claim is the right to handle one message, asked for by one delivery.
type claim struct {
	*guard
	msg   *message.Message
	key   dedup.Key
	owner string
}

// errUnguarded: the store cannot be asked, and the configuration says to go on without.
var errUnguarded = errors.New("middleware: the handler runs without a claim")

// acquire asks for the claim until there is an answer other than Busy, but not for longer than
// BusyWait. The time is that of the request which succeeded.
func (c *claim) acquire(ctx context.Context) (dedup.Answer, time.Time, error) {
	patience := time.Now().Add(c.cfg.BusyWait)
	asked := false
	for try := 1; ; try++ {
		answer, sentAt, wait, err := c.ask(ctx, try)
		asked = asked || !sentAt.IsZero()
		if err == nil && answer.Verdict != dedup.Busy {
			return answer, sentAt, nil
		}
		if ctx.Err() != nil {
			c.giveBack(ctx, false)
			return answer, sentAt, postponed(fmt.Errorf("middleware: claim: %w", context.Cause(ctx)), 0)
		}
		if err != nil && c.cfg.FailOpen {
			return answer, sentAt, errUnguarded
		}
		left := time.Until(patience)
		backoff.Sleep(ctx, min(wait, left))
		if wait < left {
			continue
		}
		if err != nil {
			if asked { // and made, perhaps: nobody else could handle the message for a lease
				c.giveBack(ctx, false)
			}
			c.tell(EventStoreDown, c)
			return answer, sentAt, postponed(fmt.Errorf("%w: %w", ErrStoreUnavailable, err), wait)
		}
		c.tell(EventInProgress, c)
		return answer, sentAt, postponed(ErrInProgress, answer.Remaining)
	}
}

var errBreakerOpen = errors.New("it did not answer several times and is left alone for a while")

// ask makes one request, if the breaker allows it, and says how long to wait before the next.
func (c *claim) ask(ctx context.Context, try int) (a dedup.Answer, sentAt time.Time, wait time.Duration, err error) {
	if wait := c.breaker.wait(); wait > 0 {
		return a, sentAt, wait, errBreakerOpen
	}
	ctx, cancel := context.WithTimeout(ctx, c.cfg.StoreTimeout)
	defer cancel()
	if err = c.ready(ctx); err == nil {
		sentAt = time.Now()
		a, err = c.store.Claim(ctx, c.key, dedup.Request{
			Owner: c.owner, Lease: c.cfg.Lease, TTL: c.cfg.DoneTTL, Digest: c.digest(c.msg),
		})
	}
	if err != nil {
		c.breaker.failed()
		return a, sentAt, storeBackoff.Delay(try), err
	}
	c.breaker.succeeded()
	// With jitter, so that the deliveries that wait for one do not all ask at the moment it ends.
	wait = 20*time.Millisecond + rand.N(min(time.Duration(try)*20*time.Millisecond, 200*time.Millisecond))
	return a, sentAt, min(wait, a.Remaining+time.Millisecond), nil
}

// ready has the store checked before the first claim: a store that forgets must not be found out by
// its duplicates.
func (g *guard) ready(ctx context.Context) error {
	if g.checked.Load() {
		return nil
	}
	g.checking.Lock()
	defer g.checking.Unlock()
	if g.checked.Load() {
		return nil
	}
	if err := g.store.Check(ctx); err != nil {
		return err
	}
	g.checked.Store(true)
	return nil
}

// giveBack releases the claim, also one whose answer never came. If that fails the lease runs out.
func (c *claim) giveBack(ctx context.Context, fresh bool) {
	// Detached: a delivery that was cancelled at shutdown must not block the message for a lease.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.cfg.StoreTimeout)
	defer cancel()
	if err := c.store.Release(ctx, c.key, c.owner, fresh); err != nil {
		c.cfg.Logger.WarnContext(ctx, "idempotent: release", "consumer", c.key.Consumer,
			"message_id", c.key.MessageID, "error", err)
	}
}
