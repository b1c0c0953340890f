package txn

import (
	"context"
	"fmt"
	"reflect"
	"runtime"
	"sync"
)

// Rehearsal is what a part of a transaction would have done, had it been a transaction of its own.
type Rehearsal struct {
	Outcome Outcome
	t       *Tx
	ctx     context.Context
	hooks   []hook // in the order in which they run
}

// Rehearse runs fn in a savepoint of t, with hooks of its own: BeforeCommit hooks run, those for after
// the end are kept. Errors are those of a transaction.
func Rehearse(ctx context.Context, t *Tx, fn func(context.Context) error) (*Rehearsal, error) {
	if depth(ctx) > maxDepth {
		return nil, fmt.Errorf("%w: transactions in hooks of transactions, %d deep", ErrUnsupported, depth(ctx))
	}
	if err := t.Err(); err != nil {
		return nil, err
	}
	outer := t.swapHooks(nil)
	returned := false
	defer func() {
		if !returned { // the panic goes on
			t.swapHooks(outer)
		}
	}()
	gaveUp := false
	err := t.nested(ctx, func(ctx context.Context, t *Tx) error {
		err := fn(ctx)
		if err == nil && t.mayCommit(ctx) {
			err = t.beforeCommit(ctx)
		}
		t.mu.Lock()
		gaveUp = t.giveUp
		t.mu.Unlock()
		return err
	})
	returned = true
	r := &Rehearsal{Outcome: Committed, t: t, ctx: ctx}
	if err != nil || gaveUp {
		r.Outcome = RolledBack
	}
	r.hooks = (&Tx{hooks: t.swapHooks(outer)}).due(r.Outcome)
	return r, err
}

func (t *Tx) swapHooks(hooks []hook) []hook {
	t.mu.Lock()
	defer t.mu.Unlock()
	hooks, t.hooks = t.hooks, hooks
	return hooks
}

// Each calls fn with the phase and the name of each hook that is to run.
func (r *Rehearsal) Each(fn func(phase, name string)) {
	for i := range r.hooks {
		fn(r.hooks[i].Phase.String(), nameOf(&r.hooks[i]))
	}
}

func nameOf(h *hook) string {
	if h.Name != "" {
		return h.Name
	}
	return runtime.FuncForPC(reflect.ValueOf(h.Named).Pointer()).Name()
}

// Run runs the hooks, once, as they run after the end of a transaction. Each is a rehearsal itself: what
// it does in a transaction is done in a savepoint of the one that is open, and the hooks of that run too.
func (r *Rehearsal) Run() []HookError {
	var mu sync.Mutex // an overrun is reported by another goroutine
	var failed []HookError
	add := func(e ...HookError) {
		mu.Lock()
		defer mu.Unlock()
		failed = append(failed, e...)
	}
	settings := *r.t.settings
	settings.OnHookError = func(e HookError) {
		add(e)
		if r.t.settings.OnHookError != nil {
			r.t.settings.OnHookError(e)
		}
	}
	played := &Tx{settings: &settings, hooks: r.hooks}
	r.hooks = nil
	for i := range played.hooks {
		h := &played.hooks[i]
		h.Async = false // what it did is to be seen when Run returns
		play := h.Fn
		h.Fn = func(ctx context.Context, o Outcome) error {
			inner, err := Rehearse(with(ctx, r.t.Identity(), r.t), r.t, func(ctx context.Context) error { return play(ctx, o) })
			if inner != nil {
				add(inner.Run()...)
			}
			return err
		}
	}
	played.runHooks(r.ctx, r.Outcome)
	mu.Lock()
	defer mu.Unlock()
	return failed
}
