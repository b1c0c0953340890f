package middleware

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace/internal/delivery"
	"github.com/millrace-go/millrace/internal/fault"
	"github.com/millrace-go/millrace/internal/redelivery"
	"github.com/millrace-go/millrace/store"
)

// deferring is one delivery as DelayedRetry sees it.
type deferring struct {
	*delayedRetry
	msg   *message.Message
	rec   *delivery.Record
	entry store.Entry     // as it came
	run   *redelivery.Run // nil: it came from the broker
	calls int             // of the handler in this delivery
	// refused: its attempts are spent, and it is looked whether it is done.
	refused bool
	total   int // in all that are known of
}

func (d *delayedRetry) handle(msg *message.Message, rec *delivery.Record, next message.HandlerFunc) ([]*message.Message, error) {
	key, err := d.consumer.key(msg)
	if err != nil {
		return nil, err
	}
	r := &deferring{delayedRetry: d, msg: msg, rec: rec, run: redelivery.From(msg)}
	if r.run != nil {
		r.entry = r.run.Entry()
		err = r.enter(key.Consumer)
	} else {
		r.entry = d.entry(key.Consumer, rec.Original(msg))
		r.entry.Topic = message.SubscribeTopicFromCtx(msg.Context())
		err = r.admit(msg.Context())
	}
	rec.SetOrderKey(r.entry.OrderKey)
	switch {
	case errors.Is(err, delivery.ErrElsewhere):
		return nil, nil
	case err != nil:
		return nil, err
	}

	rec.CountBy(r.count)
	out, err := next(msg)
	rec.CountBy(nil)
	if err = rec.Judge(err); err == nil {
		return out, nil
	}
	return nil, r.failed(err)
}

// entry is the message as it is stored.
func (d *delayedRetry) entry(group string, msg *message.Message) store.Entry {
	e := store.Entry{Group: group, MessageID: msg.UUID, Metadata: msg.Metadata, Payload: msg.Payload}
	if d.cfg.Ordered {
		e.OrderKey = d.cfg.Key(msg)
	}
	return e
}

// enter begins the run of a message that came out of the store.
func (r *deferring) enter(group string) error {
	ctx := r.msg.Context()
	if handler := message.HandlerNameFromCtx(ctx); (handler != "" && handler != r.run.Handler) || r.entry.Group != group {
		return postponed(fmt.Errorf("%w: stored for %q (group %q), came to %q (group %q)",
			ErrWrongHandler, r.run.Handler, r.entry.Group, handler, group), refusedDelay)
	}
	r.total = r.entry.Attempts
	r.rec.Made(r.total)
	for _, f := range r.entry.History {
		r.rec.Note(delivery.Failure(f))
	}
	if r.total >= r.cfg.MaxAttempts {
		// If its last attempt is known to have failed, the poison queue did not take it then. Otherwise the
		// process died in it or thereafter: it may be done, and somebody further in may know.
		err := r.spent()
		if r.lastFailed() || r.total >= r.cfg.MaxAttempts+3 {
			return err
		}
		r.refused = true
		r.rec.Refuse(err)
	}
	_, _, err := r.begin(ctx)
	return err
}

// lastFailed reports whether the history ends with the latest attempt.
func (r *deferring) lastFailed() bool {
	n := len(r.entry.History)
	return n > 0 && r.entry.History[n-1].Attempt == r.total
}

// spent is why a message is given up without being handled once more.
func (r *deferring) spent() error {
	reason, text := "attempts_spent", "the last attempt did not come to an end"
	if r.lastFailed() {
		f := r.entry.History[len(r.entry.History)-1]
		reason, text = f.Reason, f.Error
	}
	return hopeless(fmt.Errorf("%w (%d times): %s", ErrAttemptsSpent, r.total, text), reason)
}

// admit asks the store whether a message from the broker may be handled now.
func (r *deferring) admit(ctx context.Context) error {
	var a store.Admission
	err := r.ask(ctx, func(ctx context.Context) (err error) {
		a, err = r.cfg.Store.Admit(ctx, r.entry)
		return err
	})
	if err != nil || a == store.Open {
		return err
	}
	r.rec.Set(delivery.Deferred)
	switch a {
	case store.Behind:
		r.tell(0, nil, 0)
	case store.Buried:
		r.rec.Set(delivery.Poisoned)
		r.cfg.Logger.WarnContext(ctx, "a copy of a message that was given up is dropped: replay or discard the dead letter",
			"message_id", r.entry.MessageID, "group", r.entry.Group)
	}
	return delivery.ErrElsewhere
}

// count is the Counter of the delivery. The first call of a run was counted when it began.
func (r *deferring) count(ctx context.Context) (attempt int, last bool, err error) {
	claim, _ := Fence(ctx)
	switch {
	case r.refused:
		return r.total - 1, true, nil
	case r.run == nil && r.calls == 0 && claim.Fence > 1:
		// Another delivery had the claim before, and its message may have been put aside since the look.
		if err := r.admit(ctx); err != nil {
			return 0, false, err
		}
		fallthrough
	case r.run == nil:
		r.total++
	case r.calls > 0:
		return r.begin(ctx)
	}
	r.calls++
	return r.total, r.total >= r.cfg.MaxAttempts, nil
}

// begin records an attempt of a run in the store.
func (r *deferring) begin(ctx context.Context) (attempt int, last bool, err error) {
	var held bool
	err = r.ask(ctx, func(ctx context.Context) (err error) {
		attempt, held, err = r.run.Begin(ctx)
		return err
	})
	if err == nil && !held {
		err = postponed(fmt.Errorf("%w: by another process", ErrLeaseLost), 0)
	}
	if err != nil {
		return 0, false, err
	}
	r.total = attempt
	fault.Point("middleware.begun")
	return attempt, attempt >= r.cfg.MaxAttempts, nil
}

// failed decides what becomes of a message whose handling failed. It returns nil if the message is
// stored and comes again.
func (r *deferring) failed(err error) error {
	ctx := r.msg.Context()
	defer func() {
		if r.run != nil { // to be known if the message is nacked, or the poison queue does not take it
			r.run.Remember(r.history())
		}
	}()
	switch {
	case isNotYet(err):
		r.refund()
		return r.putAside(ctx, err, cmp.Or(Delay(err), r.cfg.wait(1)), 0)
	case ctx.Err() != nil, isPostponed(err), errors.Is(err, ErrSwallowed):
		// It says nothing about the message. What ran and lost its lease was an attempt all the same.
		if !errors.Is(err, ErrLeaseLost) {
			r.refund()
		}
		return err
	}
	switch {
	case r.run == nil && r.calls == 0: // nobody inside counted
		r.total++
	case errors.Is(err, ErrAttemptsSpent): // looking was no attempt
		r.refund()
	}
	r.rec.Made(r.total)
	r.rec.Note(failure(r.total, err))
	if IsPermanent(err) || r.total >= r.cfg.MaxAttempts {
		return Permanent(WithReason(err, Reason(err)))
	}
	return r.putAside(ctx, err, max(Delay(err), r.cfg.wait(r.entry.Returns+1)), 1)
}

// refund takes back the latest attempt, unless the handler is known to have failed in it: then the error
// came later.
func (r *deferring) refund() {
	history := r.rec.History()
	switch n := len(history); {
	case n > 0 && history[n-1].Attempt >= r.total:
	case r.run != nil:
		r.run.Refund()
		r.total--
	case r.calls > 0:
		r.total--
	}
}

func (r *deferring) history() []store.Failure {
	var all []store.Failure
	for _, f := range r.rec.History() {
		all = append(all, store.Failure(f))
	}
	return all
}

// putAside stores the message, to come again after the delay. Returns is 1 if that counts as a return.
func (r *deferring) putAside(ctx context.Context, cause error, delay time.Duration, returns int) error {
	e := r.entry
	e.Attempts, e.Returns, e.History = max(0, r.total), e.Returns+returns, r.history()
	if r.run != nil {
		r.run.Again(e, delay)
	} else if err := r.ask(ctx, func(ctx context.Context) error { return r.cfg.Store.Defer(ctx, e, delay) }); err != nil {
		return fmt.Errorf("%w (after: %w)", err, cause)
	}
	r.rec.Set(delivery.Deferred)
	fault.Point("middleware.deferred")
	r.tell(e.Attempts, cause, delay)
	return nil
}

func (r *deferring) tell(attempt int, cause error, delay time.Duration) {
	reason := "behind"
	if cause != nil {
		reason = Reason(cause)
	}
	r.cfg.Logger.InfoContext(context.WithoutCancel(r.msg.Context()), "message deferred", "message_id", r.entry.MessageID, "group", r.entry.Group,
		"attempt", attempt, "reason", reason, "delay", delay)
	if r.cfg.OnDeferred != nil {
		r.cfg.OnDeferred(r.msg, attempt, cause, delay)
	}
}

// failure is an entry of the history.
func failure(attempt int, err error) delivery.Failure {
	return delivery.Failure{Attempt: attempt, At: time.Now().UTC().Truncate(time.Millisecond), Reason: Reason(err), Error: bounded(err.Error(), 200)}
}
