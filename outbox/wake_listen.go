package outbox

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/millrace-go/millrace/internal/backoff"
)

const (
	// hearingTest is the time between two notes that a listener sends to itself: a connection may be
	// dead, or a pooler in between deaf, without anybody noticing.
	hearingTest = 30 * time.Second

	deafRemedy = "let the Waker connect to the server itself, and to the primary: a pooler in transaction mode takes LISTEN and " +
		"delivers nothing. Messages of other processes are found by polling until then"
)

var (
	errDeaf  = errors.New("a note sent to itself did not come back")
	errHeard = errors.New("it did come back")
)

// listen has the Box listen until as many of the returned functions were called.
func (o *others) listen() (stop func()) {
	o.coming.Lock()
	defer o.coming.Unlock()
	o.listeners++
	if o.listeners == 1 {
		// Subscribe has no context: this one ends with the last subscriber.
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() {
			defer close(done)
			o.listenOn(ctx)
		}()
		o.hangUp = func() { cancel(); <-done }
	}
	return func() {
		o.coming.Lock()
		defer o.coming.Unlock()
		if o.listeners--; o.listeners == 0 {
			o.hangUp()
		}
	}
}

// listenOn listens until ctx ends, and again whenever it turns out that it does not hear.
func (o *others) listenOn(ctx context.Context) {
	failures := 0
	test := func(ctx context.Context) error {
		o.local(^uint64(0)) // what was told while nobody listened
		for {
			err := o.hearsItself(ctx)
			if errors.Is(err, errDeaf) {
				return err
			}
			if err == nil && failures > 0 {
				failures = 0
				o.log.InfoContext(ctx, "wake-up by other processes heard again")
			}
			if !backoff.Sleep(ctx, hearingTest) { // also when the note could not be sent: that says nothing about hearing
				return nil
			}
		}
	}
	for {
		err := o.listenOnce(ctx, test)
		if ctx.Err() != nil {
			return
		}
		if failures++; failures == 1 {
			remedy := ""
			if errors.Is(err, errDeaf) {
				remedy = deafRemedy
			}
			o.log.WarnContext(ctx, "wake-up by other processes not heard, their messages are found by polling", "error", err, "remedy", remedy)
		}
		if !backoff.Sleep(ctx, noteBackoff.Delay(failures)) {
			return
		}
	}
}

// listenOnce listens until ctx ends, or the Waker fails, or test, which runs from when it listens, returns an
// error. It returns what it was, and nothing of it is left.
func (o *others) listenOnce(ctx context.Context, test func(context.Context) error) error {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	var beside sync.WaitGroup
	var once sync.Once
	err := o.waker.Listen(ctx, func() {
		once.Do(func() {
			beside.Go(func() {
				if err := test(ctx); err != nil {
					end(err)
				}
			})
		})
	}, o.hear)
	if err == nil {
		err = errors.New("it listens no more")
	}
	end(err)
	beside.Wait()
	return context.Cause(ctx)
}

// hearsItself sends a note and waits until it comes back.
func (o *others) hearsItself(ctx context.Context) error {
	heard := make(chan struct{})
	o.mu.Lock()
	o.tests++
	what := fmt.Sprintf("?%d", o.tests)
	o.waiting[what] = heard
	o.mu.Unlock()
	defer func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		delete(o.waiting, what)
	}()
	if err := o.send(what); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	timer := time.NewTimer(noteTimeout)
	defer timer.Stop()
	select {
	case <-heard:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return errDeaf
	}
}

// check tries the wake-up. That it is deaf is a matter of setup; other errors are outages.
func (ws *wakes) check(ctx context.Context) error {
	if ws.others == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 3*noteTimeout)
	defer cancel()
	o := newOthers(ws.others.waker, ws.others.log, func(uint64) {})
	err := o.listenOnce(ctx, func(ctx context.Context) error {
		if err := o.hearsItself(ctx); err != nil {
			return err
		}
		return errHeard
	})
	switch {
	case errors.Is(err, errHeard):
		return nil
	case errors.Is(err, errDeaf):
		return &setupError{what: "wake-up: " + err.Error(), remedy: deafRemedy}
	}
	return fmt.Errorf("outbox: wake-up: %w", err)
}
