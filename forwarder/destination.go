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

// refusalPause is the pause between calls of one that refuses everything: short, because every message may be the
// one that gets through.
var refusalPause = backoff.Policy{Base: 100 * time.Millisecond, Max: time.Second}

// alikeLimit is the number of different messages refused for one reason, without a success in between,
// above which the destination is taken to be at fault, and no attempts are counted any more.
const alikeLimit = 20

var errAbandoned = errors.New("forwarder: the publisher did not return when its context ended")

// destination is one broker as the forwarder has come to know it. It outlives a lost lease.
type destination struct {
	name    string
	pub     BatchPublisher
	ordered bool   // pub takes several messages of a key in one batch
	strict  bool   // what pub refuses is refused, whatever happens to the others
	cfg     Config // with what its route changes
	tally   tally

	mu        sync.Mutex
	out       int       // calls under way, the stuck ones not included
	failures  int       // passes without an answer, in a row
	until     time.Time // nothing is sent before
	probed    int64     // position of the last message it was tried with while failing
	alike     int       // different messages refused for one reason without a success
	reason    string
	rounds    int       // calls since it is suspected
	suspectAt time.Time // since when it refuses everything; zero if it does not
	downAt    time.Time // since when nothing got through; zero if it answers
	lastErr   error
	assumed   int // times that it was taken to be back without a proof
	stuck     int // calls that did not return when told to
	stuckAt   time.Time
}

func newDestination(name string, pub message.Publisher, cfg Config) *destination {
	d := &destination{name: name, cfg: cfg}
	batches, ok := pub.(BatchPublisher)
	if !ok {
		batches = newPlain(pub)
	}
	_, d.strict = pub.(nowhere)
	keyed, ok := batches.(KeyOrdered)
	d.pub, d.ordered = batches, ok && keyed.KeepsKeyOrder()
	return d
}

// pass says what may be sent to a destination at this moment.
type pass int8

const (
	closed   pass = iota
	oneOnly       // one message, to see whether it answers
	together      // one batch, of messages that otherwise go alone, too
	open
)

// gate says whether a call may be made now, and otherwise how long to wait (0: until something else
// happens). A call that may be made is counted as under way.
func (d *destination) gate(now time.Time) (pass, time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	failing := d.failures > 0 || !d.suspectAt.IsZero()
	switch {
	case d.stuck > 0:
		return closed, 0
	case now.Before(d.until):
		return closed, d.until.Sub(now)
	case failing && d.out > 0:
		return closed, 0
	}
	d.out++
	switch {
	case d.failures > 0:
		return oneOnly, 0
	case failing:
		return together, 0
	}
	return open, 0
}

// leave takes back a call that gate allowed.
func (d *destination) leave() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.out--
}

func (d *destination) lastProbe() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.probed
}

// standing is how a destination stands.
type standing struct {
	err   error     // nil if it answers
	since time.Time // when it ceased to
	stuck time.Time // since when a call does not return; zero if none is
}

func (d *destination) state() standing {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := standing{err: d.lastErr, since: d.downAt}
	if d.stuck > 0 {
		c.stuck, c.err = d.stuckAt, errAbandoned
	}
	return c
}

// suspected reports whether it refuses everything, so that it is taken to be at fault itself.
func (d *destination) suspected() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return !d.suspectAt.IsZero()
}

// suspectedFor is for how long it has.
func (d *destination) suspectedFor(now time.Time) time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.suspectAt.IsZero() {
		return 0
	}
	return now.Sub(d.suspectAt)
}

// doubted reports whether it is down as far as is known, and may be asked or, if it cannot be asked, has
// been left alone for long enough: each time twice as long.
func (d *destination) doubted(now time.Time, patience time.Duration) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.downAt.IsZero() || d.stuck > 0 {
		return false
	}
	if _, ok := d.pub.(checker); ok {
		return true
	}
	return now.Sub(d.until) >= patience<<min(d.assumed, 4)
}

// assume forgets that it was down, without a proof that it is not.
func (d *destination) assume() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failures, d.alike, d.rounds, d.suspectAt, d.downAt, d.lastErr = 0, 0, 0, time.Time{}, time.Time{}, nil
	d.assumed++
}

// checker is a publisher that can be asked whether it is set up and reached.
type checker interface{ Check(context.Context) error }

// check asks a publisher that can be asked.
func (d *destination) check(ctx context.Context, timeout time.Duration) error {
	c, ok := d.pub.(checker)
	if !ok {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return c.Check(ctx)
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
