package txn

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync"
	"time"
)

// runner runs hooks one after the other, whatever each of them does.
type runner struct {
	outer    context.Context // that the transaction was begun with
	depth    int             // of the hooks
	limit    time.Time       // for all hooks
	settings *Settings
	outcome  Outcome

	mu      sync.Mutex
	queue   []hook
	over    bool
	running *hook // until it returns, or is reported as overrun
	since   time.Time

	// watch reports a hook that overruns. It is set again where it fires, and not for each hook: a hook's deadline
	// is never before that of the hook before it.
	watch *time.Timer
	armed bool
}

type depthKey struct{}

func depth(ctx context.Context) int {
	d, _ := ctx.Value(depthKey{}).(int)
	return d
}

func (t *Tx) runHooks(ctx context.Context, outcome Outcome) {
	queue := t.due(outcome)
	if len(queue) == 0 {
		return
	}
	r := &runner{outer: ctx, depth: depth(ctx) + 1, settings: t.settings, outcome: outcome, queue: queue}
	r.runAll()
}

func (r *runner) runAll() {
	r.limit = time.Now().Add(r.settings.HooksTimeout)
	defer r.unwatch()
	r.run()
}

func (r *runner) run() {
	for {
		h := r.next()
		if h == nil {
			return
		}
		if !h.Async || !r.hire(h) {
			r.one(h)
		}
	}
}

// hire gives h to the crew, with deadlines of its own from when it starts.
func (r *runner) hire(h *hook) bool {
	h.Async = false
	alone := &runner{outer: r.outer, depth: r.depth, settings: r.settings, outcome: r.outcome, queue: []hook{*h}}
	return r.settings.Async.take(alone.runAll)
}

func (r *runner) next() *hook {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.queue) == 0 {
		r.over = true
		return nil
	}
	h := &r.queue[0]
	r.queue = r.queue[1:]
	return h
}

func (r *runner) one(h *hook) {
	outcome := r.outcome
	if h.undone {
		outcome = RolledBack
	}
	ctx := &hookContext{outer: r.outer, deadline: r.begin(h), ending: ending{r, outcome, h.round}}
	returned := false
	defer func() {
		v := recover()
		r.done()
		ctx.end()
		switch {
		case v != nil:
			r.report(h, &PanicError{v}, debug.Stack())
		case !returned: // runtime.Goexit, which goes on when this function returns
			r.report(h, ErrHookExited, nil)
			r.run()
		}
	}()
	err := h.Fn(ctx, outcome)
	returned = true
	if err != nil {
		r.report(h, err, nil)
	}
}

// begin watches h, and returns its deadline.
func (r *runner) begin(h *hook) time.Time {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.running, r.since = h, now
	deadline := r.deadline()
	if !r.armed {
		r.armed = true
		r.arm(deadline.Sub(now))
	}
	return deadline
}

// deadline is that of the running hook.
func (r *runner) deadline() time.Time {
	own := r.since.Add(r.settings.HookTimeout)
	if own.After(r.limit) {
		return r.limit
	}
	return own
}

func (r *runner) arm(d time.Duration) {
	if r.watch == nil {
		r.watch = time.AfterFunc(d, r.overrun)
	} else {
		r.watch.Reset(d)
	}
}

func (r *runner) done() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.running = nil
}

// unwatch ends the watch, after the last hook.
func (r *runner) unwatch() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.watch != nil {
		r.watch.Stop()
	}
}

// overrun reports the hook that is running, if it is this one's time that has come.
func (r *runner) overrun() {
	r.mu.Lock()
	h, took, left := r.running, time.Since(r.since), time.Until(r.deadline())
	switch {
	case h == nil:
		r.armed = false
	case left > 0:
		r.arm(left)
		h = nil
	default:
		r.armed, r.running = false, nil
	}
	r.mu.Unlock()
	if h != nil {
		r.report(h, fmt.Errorf("%w after %v, waiting for it", ErrHookOverrun, took.Round(time.Millisecond)), nil)
	}
}

// Requeue has h run behind the hooks that are running, if its phase suits the outcome.
func Requeue(ctx context.Context, h Hook) error {
	e, ok := ctx.Value(endedKey{}).(*ending)
	switch {
	case !ok:
		return ErrNoTransaction
	case h.Phase == BeforeCommit:
		return ErrTxCompleted
	case h.Phase == AfterCommit && e.outcome != Committed, h.Phase == AfterRollback && e.outcome != RolledBack:
		return nil
	case e.round >= maxRounds:
		return fmt.Errorf("millrace: hooks still add hooks after %d rounds", maxRounds)
	}
	r := e.runner
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over {
		return ErrTxCompleted
	}
	r.queue = append(r.queue, hook{Hook: h, undone: e.outcome == RolledBack, round: e.round + 1})
	return nil
}

// report never lets a reporting function disturb the hooks that follow.
func (r *runner) report(h *hook, err error, stack []byte) {
	name := nameOf(h)
	r.settings.Logger.Error("hook failed", "phase", h.Phase.String(), "hook", name, "err", err)
	if r.settings.OnHookError == nil {
		return
	}
	defer func() {
		if v := recover(); v != nil {
			r.settings.Logger.Error("OnHookError panicked", "hook", name, "panic", fmt.Sprint(v))
		}
	}()
	r.settings.OnHookError(HookError{Phase: h.Phase.String(), Name: name, Err: err, Stack: stack})
}
