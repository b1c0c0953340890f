package forwarder

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace/internal/backoff"
	"github.com/millrace-go/millrace/outbox"
)

// Source is an outbox to forward from. *outbox.Box is one.
type Source interface {
	Store() outbox.Store
	// Subscribe returns a wake-up for messages that this process commits, and a function that ends it.
	// A nil Wake means that there is none: new messages are found by polling.
	Subscribe() (w *outbox.Wake, cancel func())
}

// waker is what the forwarder needs of a Wake.
type waker interface {
	C() <-chan struct{}
	Take() uint64
}

// Forwarder carries messages from one outbox to the destinations of its routes. Make it with New, run it
// with Run or as a plugin of a Watermill router.
type Forwarder struct {
	src       Source
	subscribe func() (waker, func())
	table     table
	dests     []*destination // of the routes, and at the end that of what no route matches
	told      observers
	cfg       Config

	running atomic.Bool
	current atomic.Pointer[session]
}

// ErrRunning is returned by Run of a Forwarder that runs already.
var ErrRunning = errors.New("forwarder: it is running already")

// New checks the configuration and reports everything that is wrong with it in one error. It opens
// and starts nothing. Publishers stay the caller's: the forwarder never closes them. Pub may be nil if there
// are Config.Routes: then only their topics are forwarded, and messages of others are parked.
func New(src Source, pub message.Publisher, cfg Config) (*Forwarder, error) {
	cfg, err := cfg.complete()
	routes, wrong := newTable(cfg, pub)
	err = errors.Join(err, wrong)
	if src == nil {
		err = errors.Join(err, errors.New("forwarder: the outbox is nil"))
	}
	if err != nil {
		return nil, err
	}
	f := &Forwarder{src: src, cfg: cfg, table: routes, told: cfg.Observers}
	for _, r := range cfg.Routes {
		to := r.Publisher
		if to == nil {
			to = pub
		}
		f.dests = append(f.dests, newDestination(r.Name, to, r.applied(cfg)))
	}
	if pub == nil {
		pub = nowhere{}
	}
	f.dests = append(f.dests, newDestination(cfg.Destination, pub, cfg))
	f.subscribe = func() (waker, func()) {
		if w, cancel := src.Subscribe(); w != nil {
			return w, cancel
		}
		return silent{}, func() {}
	}
	return f, nil
}

// silent is a wake-up that never comes.
type silent struct{}

func (silent) C() <-chan struct{} { return nil }
func (silent) Take() uint64       { return 0 }

// Run forwards until ctx ends. Then it finishes what is in hand, within half the lease for the broker's
// answers and a quarter for storing them, releases its lanes, and returns nil. An error then says that the
// outcome of some messages could not be stored in time: they are sent again by whoever takes over.
//
// An outbox that is set up wrongly ends Run with an error that says how to mend it. A database or broker that
// cannot be reached, then or later, is logged and tried again until it answers.
//
// A Forwarder runs once at a time, and may run again.
func (f *Forwarder) Run(ctx context.Context) error {
	if !f.running.CompareAndSwap(false, true) {
		return ErrRunning
	}
	defer f.running.Store(false)
	if err := f.check(ctx); err != nil || ctx.Err() != nil {
		return err
	}
	defer f.retain(ctx)()
	wake, cancel := f.subscribe()
	defer cancel()
	defer f.current.Store(nil)
	for {
		s := f.newSession(wake)
		f.current.Store(s)
		err := s.run(ctx)
		switch {
		case errors.Is(err, errStopped):
			return nil
		case ctx.Err() != nil:
			return err
		}
		f.cfg.Logger.WarnContext(ctx, "starting anew", "cause", err)
	}
}

// retainAfter is how long the outbox is left to forwarding at the start: what waits there comes first.
const retainAfter = 2 * time.Second

// retain has the outbox forget what it has kept for long enough, beside everything else. Each replica may do
// so: every row is deleted by one of them.
func (f *Forwarder) retain(ctx context.Context) (stop func()) {
	keeper, ok := f.src.(interface {
		RunRetention(ctx context.Context) error
	})
	if !ok {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if !backoff.Sleep(ctx, retainAfter) {
			return
		}
		_ = keeper.RunRetention(ctx) // it logs what fails, and tries again
	}()
	return func() {
		cancel()
		<-done
	}
}

// preflight says at once whether Run would end because something is set up wrongly.
func (f *Forwarder) preflight(ctx context.Context) error {
	wrong, _ := f.look(ctx)
	return wrong
}

// look looks at the publishers and at the outbox, both at once. Wrong is all that is set up wrongly, missing why the outbox
// cannot be worked on yet.
func (f *Forwarder) look(ctx context.Context) (wrong, missing error) {
	publishers := make(chan error, 1)
	go func() { publishers <- f.checkPublishers(ctx) }()
	missing = f.checkOutbox(ctx)
	wrong = <-publishers
	if outbox.IsSetup(missing) {
		wrong = errors.Join(wrong, missing)
	}
	return wrong, missing
}

// checkBackoff is the pause between looks at an outbox that cannot be reached.
var checkBackoff = backoff.Policy{Base: 250 * time.Millisecond, Max: 5 * time.Second}

// check waits until the outbox can be worked on. Its error is a setup that no waiting mends.
func (f *Forwarder) check(ctx context.Context) error {
	wrong, err := f.look(ctx)
	if wrong != nil {
		return wrong
	}
	for tries := 1; err != nil && ctx.Err() == nil; tries++ {
		f.cfg.Logger.WarnContext(ctx, "outbox not reached, trying on", "error", err, "tries", tries)
		if !backoff.Sleep(ctx, checkBackoff.Delay(tries)) {
			return nil
		}
		if err = f.checkOutbox(ctx); outbox.IsSetup(err) {
			return err
		}
	}
	return nil
}

// checkTimeout bounds one look at the outbox: a database that does not answer at all is to be heard of.
const checkTimeout = 30 * time.Second

func (f *Forwarder) checkOutbox(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	err := f.src.Store().Check(ctx)
	if outbox.IsSetup(err) {
		return fmt.Errorf("forwarder: check the outbox: %w", err)
	}
	return err
}

// checkPublishers asks the publishers that can be asked. One that cannot be reached is waited for while
// running; those that are set up wrongly are an error.
func (f *Forwarder) checkPublishers(ctx context.Context) error {
	var wrong []error
	asked := map[BatchPublisher]bool{}
	for _, d := range f.dests {
		if reflect.ValueOf(d.pub).Comparable() {
			if asked[d.pub] {
				continue
			}
			asked[d.pub] = true
		}
		err := d.check(ctx, f.cfg.PublishTimeout)
		if err == nil || ctx.Err() != nil {
			continue
		}
		var setup interface{ Setup() bool }
		if errors.As(err, &setup) && setup.Setup() {
			wrong = append(wrong, fmt.Errorf("forwarder: check the publisher of destination %q: %w", d.name, err))
			continue
		}
		f.cfg.Logger.WarnContext(ctx, "destination not reached, trying on", "destination", d.name, "error", err)
	}
	return errors.Join(wrong...)
}
