package middleware

import (
	"context"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace/dedup"
	"github.com/millrace-go/millrace/internal/backoff"
	"github.com/millrace-go/millrace/internal/delivery"
)

// Claim is what a handler can know about the claim under which it runs.
type Claim struct {
	Key dedup.Key
	// Owner is a random name of this delivery.
	Owner string
	// Fence is higher than that of every earlier claim of the message. A resource that remembers the
	// highest it has seen, and refuses lower ones, is safe from a handler that lost its claim.
	Fence int64
	// Attempts counts how often handling was begun, in all processes, this time included.
	Attempts int
}

type claimKey struct{}

// Fence returns the claim under which the handler runs. False: it runs without one.
func Fence(ctx context.Context) (Claim, bool) {
	c, ok := ctx.Value(claimKey{}).(Claim)
	return c, ok
}

// run runs the handler under a claim that was granted, and records the end.
func (c *claim) run(rec *delivery.Record, answer dedup.Answer, sentAt time.Time, next message.HandlerFunc) (out []*message.Message, err error) {
	outer := c.msg.Context()
	// The claim is kept until the delivery has ended: whoever stands around this middleware may still
	// be storing the message elsewhere.
	settled := false
	defer func() {
		if settled {
			return
		}
		rec.AtEnd(func(o delivery.Outcome) { c.giveBack(outer, o == delivery.Poisoned || o == delivery.Deferred) })
	}()
	rec.SetAttempts(answer.Attempts)
	if answer.Attempts > c.cfg.MaxClaims {
		c.tell(EventTooManyClaims, c)
		return nil, hopeless(fmt.Errorf("%w (%d times)", ErrTooManyClaims, answer.Attempts-1), "too_many_claims")
	}

	l := c.hold(outer, sentAt)
	defer l.stop()
	c.msg.SetContext(context.WithValue(l.ctx, claimKey{},
		Claim{Key: c.key, Owner: c.owner, Fence: answer.Fence, Attempts: answer.Attempts}))
	defer c.msg.SetContext(outer)

	out, err = next(c.msg)
	if err = rec.Judge(err); err != nil || rec.Outcome() != delivery.Done {
		return out, c.explain(l, err)
	}
	out = deriveOutputs(c.msg, c.key, out)
	result, err := encodeOutputs(out)
	if err != nil {
		rec.Set(delivery.Failed)
		return nil, err
	}
	settled = true
	if err := c.settle(outer, rec, result); err != nil {
		return nil, err
	}
	return out, nil
}

// explain says what the failing of a handler that had to stop comes from.
func (c *claim) explain(l *lease, err error) error {
	if err != nil && l.lost() {
		c.tell(EventLeaseLost, c)
		return postponed(fmt.Errorf("%w: %w", ErrLeaseLost, err), 0)
	}
	c.tell(EventReleased, c)
	return err
}

// settle records that the message is done.
func (c *claim) settle(ctx context.Context, rec *delivery.Record, result []byte) error {
	mark, err := c.markDone(ctx, result)
	switch {
	case err != nil:
		// The effect has happened. To nack now would make certain that it happens again; to
		// acknowledge makes it possible only if there is another copy.
		c.cfg.Logger.ErrorContext(context.WithoutCancel(ctx), "idempotent: done", "consumer", c.key.Consumer,
			"message_id", c.key.MessageID, "error", err)
		c.tell(EventDoneFailed, c)
	case mark == dedup.Lost:
		rec.Set(delivery.Failed)
		c.tell(EventLeaseLost, c)
		return postponed(ErrLeaseLost, 0)
	case mark == dedup.Recreated:
		c.tell(EventRecreated, c)
	default:
		c.tell(EventHandled, c)
	}
	return nil
}

// markDone tries for one lease, while the claim goes on being renewed.
func (c *claim) markDone(ctx context.Context, result []byte) (dedup.Mark, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.cfg.Lease)
	defer cancel()
	for try := 1; ; try++ {
		mark, err := c.tryDone(ctx, result)
		if err == nil {
			return mark, nil
		}
		backoff.Sleep(ctx, storeBackoff.Delay(try))
		if ctx.Err() != nil {
			return 0, err
		}
	}
}

func (c *claim) tryDone(ctx context.Context, result []byte) (dedup.Mark, error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.StoreTimeout)
	defer cancel()
	return c.store.Done(ctx, c.key, c.owner, result, c.cfg.DoneTTL)
}
