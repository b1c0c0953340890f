package delayed

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace/internal/delivery"
	"github.com/millrace-go/millrace/internal/fault"
	"github.com/millrace-go/millrace/internal/redelivery"
	"github.com/millrace-go/millrace/store"
)

// nackDelay is how long a message waits at least that was nacked.
const nackDelay = time.Second

// maxNackHint bounds how long a handler that asks for it can have a nacked message wait.
const maxNackHint = time.Minute

// held is a message that this process has taken.
type held struct {
	*subscription
	run    *redelivery.Run
	entry  store.Entry
	owner  string
	msg    *message.Message
	lose   context.CancelCauseFunc
	until  time.Time   // by our clock, the end of the lease
	end    *time.Timer // fires then
	isLost bool
}

// deliver hands one message out and sees to what becomes of it.
func (s *subscription) deliver(e store.Entry, owner string, askedAt time.Time) {
	h := &held{subscription: s, entry: e, owner: owner, end: time.NewTimer(s.cfg.Lease)}
	defer h.end.Stop()
	h.extend(askedAt)
	h.run = redelivery.New(s.cfg.Handler, e, func(ctx context.Context, attempt int) (bool, error) {
		return s.store.Begin(ctx, e, owner, attempt)
	})
	ctx, lose := context.WithCancelCause(redelivery.With(s.values, h.run))
	defer lose(nil)
	h.lose = lose
	h.msg = message.NewMessage(e.MessageID, slices.Clone(e.Payload))
	maps.Copy(h.msg.Metadata, e.Metadata)
	h.msg.SetContext(ctx)

	heartbeat := time.NewTicker(s.cfg.Lease / 3)
	defer heartbeat.Stop()
	if !h.handOut(heartbeat.C) {
		h.giveBack(0)
		return
	}
	if acked, ok := h.await(heartbeat.C); ok {
		h.settle(acked)
	}
}

// handOut waits until somebody takes the message. False: nobody did before the end.
func (h *held) handOut(beat <-chan time.Time) bool {
	for !h.isLost {
		select {
		case h.out <- h.msg:
			return true
		case <-beat:
			h.renew()
		case <-h.end.C:
			h.lost()
		case <-h.ctx.Done():
			return false
		}
	}
	return false
}

// await waits for what the handler says. Not ok: it is not waited for any longer, and others get the
// message when its lease ends.
func (h *held) await(beat <-chan time.Time) (acked, ok bool) {
	for {
		select {
		case <-h.msg.Acked():
			return true, true
		case <-h.msg.Nacked():
			return false, true
		case <-beat:
			h.renew()
		case <-h.end.C:
			h.lost()
		case <-h.abandon:
			return false, false
		}
	}
}

// extend notes a lease that was asked for at a time. It is over a little earlier here than in the store.
func (h *held) extend(askedAt time.Time) {
	h.until = askedAt.Add(h.cfg.Lease - h.cfg.Lease/10)
	h.end.Reset(time.Until(h.until))
}

// renew keeps the lease. A store that does not answer is asked again at the next beat, until the lease is over.
func (h *held) renew() {
	if h.isLost {
		return
	}
	askedAt := time.Now()
	var ok bool
	err := h.call(func(ctx context.Context) (err error) {
		ctx, cancel := context.WithDeadline(ctx, h.until)
		defer cancel()
		ok, err = h.store.Renew(ctx, h.entry, h.owner, h.cfg.Lease)
		return err
	})
	switch {
	case err == nil && ok:
		h.extend(askedAt)
	case err == nil:
		h.lost()
	}
}

// lost tells the handler by its context that the message may be with another process.
func (h *held) lost() {
	h.isLost = true
	h.log.WarnContext(h.values, "delayed: the lease of a stored message ended while it was handled", "message_id", h.entry.MessageID)
	h.lose(ErrLeaseLost)
}

// settle ends what the handler was through with.
func (h *held) settle(acked bool) {
	fault.Point("delayed.settle")
	again, delay := h.run.Decision()
	switch {
	case !acked:
		h.giveBack(max(nackDelay, min(delivery.NackDelay(h.msg), maxNackHint)))
	case again:
		h.giveBack(delay)
	default:
		h.persist("forget", func(ctx context.Context) (bool, error) { return h.store.Forget(ctx, h.entry, h.owner) })
	}
}

func (h *held) giveBack(delay time.Duration) {
	e := h.run.Entry()
	h.persist("return", func(ctx context.Context) (bool, error) { return h.store.Return(ctx, e, h.owner, delay) })
}

// persist tries until the store answers or the lease is over: then the message comes again by itself, and
// what knows that it was handled drops it.
func (h *held) persist(what string, f func(context.Context) (bool, error)) {
	for try := 1; ; try++ {
		err := h.call(func(ctx context.Context) error { _, err := f(ctx); return err })
		if err == nil {
			return
		}
		wait := between.Delay(try)
		if time.Now().Add(wait).After(h.until) {
			h.log.WarnContext(h.values, "delayed: "+what, "message_id", h.entry.MessageID, "error", err)
			return
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-h.abandon:
			timer.Stop()
			return
		}
	}
}
