package forwarder

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace/internal/backoff"
)

// outage is the back-off of a destination that does not answer.
var outage = backoff.Policy{Base: 100 * time.Millisecond, Max: 5 * time.Second}

// alikeLimit is the number of different messages refused for one reason, without a success in between,
// from which on the destination is taken to be at fault, and no attempts are counted any more.
const alikeLimit = 20

var errAbandoned = errors.New("forwarder: the publisher did not return when its context ended")

// destination is one broker as the forwarder has come to know it. It outlives a lost lease.
type destination struct {
	name string
	pub  BatchPublisher

	mu       sync.Mutex
	out      int       // calls under way, the stuck ones not included
	failures int       // passes without an answer, in a row
	until    time.Time // nothing is sent before
	probed   int64     // position of the last probe
	alike    int       // different messages refused for one reason without a success
	reason   string
	lastErr  error
	stuck    int // calls that did not return when told to
	stuckAt  time.Time
}

// gate says whether a call may be made now, whether it is to be a probe of one message, and otherwise
// how long to wait (0: until something else happens). A call that may be made is counted as under way.
func (d *destination) gate(now time.Time) (open, probe bool, after int64, wait time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.stuck > 0:
		return false, false, 0, 0
	case now.Before(d.until):
		return false, false, 0, d.until.Sub(now)
	case d.failures > 0 && d.out > 0:
		return false, false, 0, 0
	}
	d.out++
	return true, d.failures > 0, d.probed, 0
}

// leave takes back a call that gate allowed.
func (d *destination) leave() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.out--
}

// failing reports how many passes failed in a row, the last error, and since when calls are stuck.
func (d *destination) failing() (failures int, last error, stuckAt time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stuck > 0 {
		stuckAt = d.stuckAt
	}
	return d.failures, d.lastErr, stuckAt
}

// publish calls the publisher and waits until it returns. One that stays although ctx has ended is left
// behind after grace; freed is called when it returns at last, and until then nothing else is sent: its
// messages may still be on their way, and newer ones must not overtake them.
func (d *destination) publish(ctx context.Context, grace time.Duration, freed func(), topics []string, msgs []*message.Message) []error {
	answer := make(chan []error)
	left := make(chan struct{})
	go func() {
		errs := d.pub.PublishBatch(ctx, topics, msgs)
		select {
		case answer <- errs:
		case <-left:
			d.mu.Lock()
			d.stuck--
			d.mu.Unlock()
			freed()
		}
	}()
	select {
	case errs := <-answer:
		return complete(errs, len(msgs))
	case <-ctx.Done():
	}
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case errs := <-answer:
		return complete(errs, len(msgs))
	case <-timer.C:
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stuck == 0 {
		d.stuckAt = time.Now()
	}
	d.stuck++
	close(left)
	return sameError(errAbandoned, len(msgs))
}

// complete makes sure that there is an answer for each message.
func complete(errs []error, n int) []error {
	if len(errs) == n {
		return errs
	}
	return sameError(fmt.Errorf("forwarder: the publisher answered %d errors for %d messages", len(errs), n), n)
}

func sameError(err error, n int) []error {
	errs := make([]error, n)
	for i := range errs {
		errs[i] = err
	}
	return errs
}
