package millrace

import (
	"context"
	"errors"
	"fmt"

	"github.com/millrace-go/millrace/internal/txn"
)

// HookOption changes one registration.
type HookOption func(*hookOptions)

type hookOptions struct {
	identity any
	hook     txn.Hook
}

// For names the database whose transaction is meant, where transactions of several are open.
func For(db DB) HookOption {
	return func(o *hookOptions) { o.identity = db.TxnPool().Identity() }
}

// Name names the hook in logs and in HookError. Default: the name of the function.
func Name(name string) HookOption { return func(o *hookOptions) { o.hook.Name = name } }

// Order sorts the hooks of one phase, lowest first; those of equal order, 0 by default, run as
// registered.
func Order(n int) HookOption { return func(o *hookOptions) { o.hook.Order = n } }

// Async has the hook run in a goroutine, so that InTx does not wait for it: at most Config.AsyncWorkers
// at once, the next wait in a queue. Order does not bind it. Its deadline counts from its start, and one
// that overruns is reported. It is never dropped: where the queue is full, and after Close, it runs in
// the caller's goroutine like any other. A process that ends without Close loses what waits, as a crash
// does. BeforeCommit refuses it with ErrUnsupported.
func Async() HookOption { return func(o *hookOptions) { o.hook.Async = true } }

// BeforeCommit has fn run inside the transaction of ctx, after the function given to InTx returned nil
// and before COMMIT. Its error or panic rolls the transaction back. A BeforeCommit hook may register
// hooks of every kind, further BeforeCommit hooks among them.
func BeforeCommit(ctx context.Context, fn func(ctx context.Context) error, opts ...HookOption) error {
	return register(ctx, txn.BeforeCommit, func(ctx context.Context, _ txn.Outcome) error { return fn(ctx) }, fn, opts)
}

// AfterCommit has fn run once the transaction of ctx has certainly committed and its connection is back
// in the pool. fn gets a context with the values of the one given to InTx, a deadline of its own, and
// no transaction: to write, it calls InTx. Its error or panic is reported (Config.OnHookError) and
// changes nothing else. What must happen even if the process dies belongs in the outbox instead.
//
// Without a transaction in ctx it returns ErrNoTransaction, after its end ErrTxCompleted: a hook is
// never dropped in silence.
func AfterCommit(ctx context.Context, fn func(ctx context.Context) error, opts ...HookOption) error {
	return register(ctx, txn.AfterCommit, func(ctx context.Context, _ txn.Outcome) error { return fn(ctx) }, fn, opts)
}

// AfterRollback has fn run once the transaction of ctx, or the Nested part of it, has certainly been
// rolled back. Otherwise as AfterCommit.
func AfterRollback(ctx context.Context, fn func(ctx context.Context) error, opts ...HookOption) error {
	return register(ctx, txn.AfterRollback, func(ctx context.Context, _ txn.Outcome) error { return fn(ctx) }, fn, opts)
}

// AfterCompletion has fn run when the transaction of ctx has ended in any way, after the AfterCommit or
// AfterRollback hooks. It is the only hook that runs when the outcome is Unknown. Otherwise as
// AfterCommit.
func AfterCompletion(ctx context.Context, fn func(ctx context.Context, outcome Outcome) error, opts ...HookOption) error {
	return register(ctx, txn.AfterCompletion, func(ctx context.Context, o txn.Outcome) error { return fn(ctx, Outcome(o)) }, fn, opts)
}

// AfterCommitOrNow is AfterCommit, and without a transaction in ctx runs fn at once and returns its
// error.
func AfterCommitOrNow(ctx context.Context, fn func(ctx context.Context) error, opts ...HookOption) error {
	err := AfterCommit(ctx, fn, opts...)
	if errors.Is(err, ErrNoTransaction) {
		return fn(ctx)
	}
	return err
}

func register(ctx context.Context, phase txn.Phase, run func(context.Context, txn.Outcome) error, named any, opts []HookOption) error {
	o := collect(opts)
	t, err := txn.Current(ctx, o.identity)
	if err != nil {
		return err
	}
	o.hook.Phase, o.hook.Fn, o.hook.Named = phase, run, named
	return t.Register(o.hook)
}

// current is for what takes For alone.
func current(ctx context.Context, opts []HookOption) (*txn.Tx, error) {
	o := collect(opts)
	if h := o.hook; h.Async || h.Name != "" || h.Order != 0 {
		return nil, fmt.Errorf("%w: only For has a meaning here", ErrUnsupported)
	}
	return txn.Current(ctx, o.identity)
}

func collect(opts []HookOption) hookOptions {
	if len(opts) == 0 {
		return hookOptions{} // stays on the stack
	}
	var o hookOptions
	for _, opt := range opts {
		opt(&o)
	}
	return o
}
