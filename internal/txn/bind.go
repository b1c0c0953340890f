package txn

import (
	"context"
	"fmt"

	"github.com/millrace-go/millrace/internal/dberr"
)

// Binding is one transaction that somebody else begins and ends.
type Binding struct {
	pool   Beginner
	dial   Dialect
	t      *Tx
	cause  error // why fn did not pass the transaction on for COMMIT
	passed bool
	mark   *witness
}

// Bind runs around, in which a foreign transaction begins, goes through Binding.Run, and ends, and then
// runs the hooks by what became of it.
func Bind(ctx context.Context, p Beginner, around func(context.Context, *Binding) error) error {
	dialect, err := p.Dialect(ctx)
	if err != nil {
		return err
	}
	b := &Binding{pool: p, dial: dialect}
	returned := false
	defer func() {
		if !returned && b.t != nil {
			outcome, _ := b.find(ctx, errLeft) // the panic goes on
			b.t.conclude(ctx, outcome)
		}
	}()
	err = around(ctx, b)
	returned = true
	if b.t == nil {
		return err
	}
	outcome, err := b.find(ctx, err)
	b.t.conclude(ctx, outcome)
	return err
}

// find is outcome, and the witness's word where that is Unknown.
func (b *Binding) find(ctx context.Context, err error) (Outcome, error) {
	outcome := b.outcome(err)
	switch {
	case outcome != Unknown:
		return outcome, err
	case err == nil:
		err = fmt.Errorf("the transaction's error was ignored: %w", b.cause)
	}
	return b.t.resolve(ctx, b.mark, err)
}

// Dialect is the kind of database.
func (b *Binding) Dialect() Dialect { return b.dial }

// outcome reads what became of the transaction from what its owner returned.
func (b *Binding) outcome(err error) Outcome {
	switch {
	case err == nil && b.passed:
		return Committed
	case err != nil && (!b.passed || dberr.NotCommitted(string(b.dial), err)):
		return RolledBack
	}
	return Unknown
}

// Run runs fn inside the foreign transaction conn, then its BeforeCommit hooks and the flush. The owner
// must commit if, and only if, Run returns nil.
func (b *Binding) Run(ctx context.Context, conn Conn, fn func(context.Context) error) error {
	if b.t != nil {
		return fmt.Errorf("%w: a second transaction in one Bind", ErrUnsupported)
	}
	t := &Tx{pool: b.pool, conn: conn, dialect: b.dial, settings: b.pool.Settings(), raw: true, strange: true}
	inner, cancel := context.WithCancel(with(ctx, b.pool.Identity(), t))
	t.ctx, t.cancel = inner, cancel
	b.t, b.cause = t, errLeft
	if err := t.watch(ctx); err != nil {
		b.cause = err
		return err
	}
	err := fn(inner)
	if err == nil && t.mayCommit(ctx) {
		err = t.beforeCommit(inner)
	}
	mark, last := t.newWitness()
	b.cause = t.handOver(ctx, err, last)
	if b.cause == nil { // only then the witness is certainly there
		b.passed, b.mark = true, mark
	}
	return b.cause
}

// handOver is complete without the COMMIT, which is the owner's.
func (t *Tx) handOver(ctx context.Context, cause error, last []Statement) error {
	t.mu.Lock()
	verdict := t.verdict()
	if verdict == nil && t.giveUp {
		verdict = ErrUnexpectedRollback // the owner commits unless there is an error
	}
	t.status = completing
	t.mu.Unlock()
	t.use.Lock()
	defer t.use.Unlock()
	for _, err := range []error{cause, ctx.Err(), verdict} {
		if err != nil {
			return err
		}
	}
	stmts, err := t.drain(ctx)
	if err == nil {
		err = t.inside(ctx)
	}
	if err == nil {
		err = missingTable(ExecAll(ctx, t.conn, append(stmts, last...)))
	}
	return err
}

// conclude runs what waits for the end.
func (t *Tx) conclude(ctx context.Context, outcome Outcome) {
	t.cancel()
	t.mu.Lock()
	t.status = ended
	onEnd := t.onEnd
	t.mu.Unlock()
	for _, fn := range onEnd {
		fn(outcome)
	}
	t.runHooks(ctx, outcome)
}
