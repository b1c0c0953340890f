package txn

import (
	"context"
	"fmt"
	"slices"
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
	byOrder := func(a, b hook) int { return a.Order - b.Order }
	if !slices.IsSortedFunc(hooks, byOrder) {
		slices.SortStableFunc(hooks, byOrder)
	}
}

// due lists the hooks that run after outcome: the phase's own first, then AfterCompletion.
func (t *Tx) due(outcome Outcome) []hook {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.status = ended
	if len(t.hooks) == 0 {
		return nil
	}
	queue := make([]hook, 0, len(t.hooks))
	for _, h := range t.hooks {
		if h.Phase == AfterCommit && outcome == Committed ||
			h.Phase == AfterRollback && (outcome == RolledBack || h.undone) {
			queue = append(queue, h)
		}
	}
	own := len(queue)
	for _, h := range t.hooks {
		if h.Phase == AfterCompletion {
			queue = append(queue, h)
		}
	}
	t.hooks = nil
	sortHooks(queue[:own])
	sortHooks(queue[own:])
	return queue
}
