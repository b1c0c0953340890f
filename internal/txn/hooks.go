package txn

import (
	"context"
	"fmt"
	"reflect"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"time"
)

// Phase is when a hook runs.
type Phase int

const (
	BeforeCommit Phase = iota
	AfterCommit
	AfterRollback
	AfterCompletion
)

func (p Phase) String() string {
	return [...]string{"before commit", "after commit", "after rollback", "after completion"}[p]
}

// Hook is a function to run at a Phase.
type Hook struct {
	Phase Phase
	Fn    func(context.Context, Outcome) error
	Named any // the user's function, whose name stands in for Name
	Name  string
	Order int
	Async bool // in the Crew, if that has room
}

type hook struct {
	Hook
	ran    bool // a BeforeCommit hook that has run
	undone bool // its savepoint was rolled back
	round  int  // how many hooks before it led to it
}

// maxRounds bounds BeforeCommit hooks that register BeforeCommit hooks; maxDepth bounds
// transactions in hooks of transactions.
const (
	maxRounds = 16
	maxDepth  = 8
)

// Register adds a hook. It fails once the transaction is completing.
func (t *Tx) Register(h Hook) error {
	if h.Async && h.Phase == BeforeCommit {
		return fmt.Errorf("%w: COMMIT cannot wait for an async hook", ErrUnsupported)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.err(); err != nil {
		return err
	}
	t.hooks = append(t.hooks, hook{Hook: h})
	return nil
}

// undoHooks applies the rollback of a savepoint: what was to happen on commit no longer does, what was
// to happen on rollback still waits for the end, because only then are the locks gone.
func (t *Tx) undoHooks(from int) {
	kept := t.hooks[:min(from, len(t.hooks))]
	for _, h := range t.hooks[len(kept):] {
		if h.Phase == AfterRollback || h.Phase == AfterCompletion {
			h.undone = true
			kept = append(kept, h)
		}
	}
	clear(t.hooks[len(kept):])
	t.hooks = kept
}

// beforeCommit runs the BeforeCommit hooks, and those that they add.
func (t *Tx) beforeCommit(ctx context.Context) error {
	for range maxRounds {
		round := t.takeBefore()
		if len(round) == 0 {
			return nil
		}
		for _, h := range round {
			if err := h.Fn(ctx, Unknown); err != nil {
				return err
			}
		}
	}
	return fmt.Errorf("millrace: before commit: hooks still add hooks after %d rounds", maxRounds)
}

func (t *Tx) takeBefore() []hook {
	t.mu.Lock()
	defer t.mu.Unlock()
	var round []hook
	for i := range t.hooks {
		if h := &t.hooks[i]; h.Phase == BeforeCommit && !h.ran {
			h.ran = true
			round = append(round, *h)
		}
	}
	sortHooks(round)
	return round
}

func sortHooks(hooks []hook) {
	slices.SortStableFunc(hooks, func(a, b hook) int { return a.Order - b.Order })
}

// due lists the hooks that run after outcome: the phase's own first, then AfterCompletion.
func (t *Tx) due(outcome Outcome) []hook {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.status = ended
	var first, last []hook
	for _, h := range t.hooks {
		switch {
		case h.Phase == AfterCommit && outcome == Committed,
			h.Phase == AfterRollback && (outcome == RolledBack || h.undone):
			first = append(first, h)
		case h.Phase == AfterCompletion:
			last = append(last, h)
		}
	}
	t.hooks = nil
	sortHooks(first)
	sortHooks(last)
	return append(first, last...)
}

// runner runs hooks one after the other, whatever each of them does.
type runner struct {
	outer    context.Context // ctx without the deadline
	ctx      context.Context
	settings *Settings
	outcome  Outcome

	mu      sync.Mutex
	queue   []hook
	over    bool
	running *hook // with since, for the watch
	since   time.Time
	watch   *time.Timer
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
	ctx = context.WithValue(Masked(context.WithoutCancel(ctx)), depthKey{}, depth(ctx)+1)
	runAll(ctx, t.settings, outcome, queue)
}

func runAll(outer context.Context, s *Settings, outcome Outcome, queue []hook) {
	ctx, cancel := context.WithTimeout(outer, s.HooksTimeout)
	defer cancel()
	r := &runner{outer: outer, ctx: ctx, settings: s, outcome: outcome, queue: queue}
	r.watch = time.AfterFunc(time.Hour, r.overrun)
	defer r.watch.Stop()
	r.run()
}

func (r *runner) run() {
	for {
		h, ok := r.next()
		if !ok {
			return
		}
		if !h.Async || !r.hire(h) {
			r.one(h)
		}
	}
}

// hire gives h to the crew, with deadlines of its own from when it starts.
func (r *runner) hire(h hook) bool {
	h.Async = false
	return r.settings.Async.take(func() { runAll(r.outer, r.settings, r.outcome, []hook{h}) })
}

func (r *runner) next() (hook, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.queue) == 0 {
		r.over = true
		return hook{}, false
	}
	h := r.queue[0]
	r.queue = r.queue[1:]
	return h, true
}

func (r *runner) one(h hook) {
	outcome := r.outcome
	if h.undone {
		outcome = RolledBack
	}
	ctx, cancel := context.WithTimeout(r.ctx, r.settings.HookTimeout)
	defer cancel()
	r.watched(&h)
	returned := false
	defer func() {
		v := recover()
		r.watched(nil)
		switch {
		case v != nil:
			r.report(h, &PanicError{v}, debug.Stack())
		case !returned: // runtime.Goexit, which goes on when this function returns
			r.report(h, ErrHookExited, nil)
			r.run()
		}
	}()
	err := h.Fn(&hookContext{ctx, ending{r, outcome, h.round}}, outcome)
	returned = true
	if err != nil {
		r.report(h, err, nil)
	}
}

// watched starts the watch of a hook, or ends it.
func (r *runner) watched(h *hook) {
	r.mu.Lock()
	r.running, r.since = h, time.Now()
	r.mu.Unlock()
	if h != nil {
		limit, _ := r.ctx.Deadline()
		r.watch.Reset(min(r.settings.HookTimeout, max(0, time.Until(limit))))
	} else {
		r.watch.Stop()
	}
}

// overrun reports the hook that is running. The timer may have fired late, for one that was before it.
func (r *runner) overrun() {
	r.mu.Lock()
	h, took := r.running, time.Since(r.since)
	r.mu.Unlock()
	if h != nil && (took >= r.settings.HookTimeout || r.ctx.Err() != nil) {
		r.report(*h, fmt.Errorf("%w after %v, waiting for it", ErrHookOverrun, took.Round(time.Millisecond)), nil)
	}
}

// hookContext is the context that a hook gets.
type hookContext struct {
	context.Context
	ending
}

func (c *hookContext) Value(key any) any {
	if key == (endedKey{}) {
		return &c.ending
	}
	return c.Context.Value(key)
}

// ending is what the context of a hook knows of the transaction that has ended.
type ending struct {
	runner  *runner
	outcome Outcome
	round   int
}

type endedKey struct{}

// Ended returns the outcome of the transaction whose hook ctx was given to.
func Ended(ctx context.Context) (Outcome, bool) {
	e, ok := ctx.Value(endedKey{}).(*ending)
	if !ok {
		return Unknown, false
	}
	return e.outcome, true
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
func (r *runner) report(h hook, err error, stack []byte) {
	name := h.Name
	if name == "" {
		name = runtime.FuncForPC(reflect.ValueOf(h.Named).Pointer()).Name()
	}
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
