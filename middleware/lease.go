package middleware

import (
	"context"
	"errors"
	"time"

	"github.com/millrace-go/millrace/internal/backoff"
)

// lease keeps a claim alive while its handler runs.
type lease struct {
	ctx  context.Context // the handler's: ends with ErrLeaseLost as the cause
	stop func()          // ends the renewing; returns when it has ended
}

// lost reports whether the handler was told to stop because of the claim.
func (l *lease) lost() bool { return errors.Is(context.Cause(l.ctx), ErrLeaseLost) }

// hold renews the claim, asked for at sentAt, three times per lease. The handler's context ends when
// the store says that the claim is gone, and when the lease as seen from here is nearly over whatever
// the store says: our clock may run a little slower than the store's, and an answer may be late. That
// is final: a handler that does not listen must not hold its successor off for ever.
func (c *claim) hold(parent context.Context, sentAt time.Time) *lease {
	ctx, cancel := context.WithCancelCause(parent)
	lose := func() { cancel(ErrLeaseLost) }
	life := c.cfg.Lease - c.cfg.Lease/10
	expire := time.AfterFunc(time.Until(sentAt.Add(life)), lose)
	l := &lease{ctx: ctx}

	// Detached: at shutdown the handler still runs, and its claim has to hold until it returns.
	renewing, stopRenewing := context.WithCancel(context.WithoutCancel(parent))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for wait := c.cfg.Lease / 3; ; {
			backoff.Sleep(renewing, wait)
			if renewing.Err() != nil || l.lost() {
				return
			}
			sentAt := time.Now()
			held, err := c.renew(renewing)
			switch {
			case err != nil:
				// A short outage must not end the work; a long one does, by the deadline above.
				wait = c.cfg.Lease / 15
				continue
			case !held:
				lose()
				return
			}
			expire.Reset(time.Until(sentAt.Add(life)))
			wait = c.cfg.Lease / 3
		}
	}()
	l.stop = func() {
		stopRenewing()
		<-ended
		expire.Stop()
		cancel(nil)
	}
	return l
}

func (c *claim) renew(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.StoreTimeout)
	defer cancel()
	return c.store.Renew(ctx, c.key, c.owner, c.cfg.Lease)
}
