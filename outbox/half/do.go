package half

import (
	"context"
	"errors"
	"fmt"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/internal/fault"
	"github.com/millrace-go/millrace/internal/txn"
)

// Do stores msg, runs fn, and lets the message go if fn returns nil. A crash at any point leaves it to
// the check-back.
//
// An error of fn does not prove that nothing was done: an answer may have been lost. So the message is
// left to the check-back, too, unless the error says that it is definite; see NothingDone. Once fn
// returned nil, so does Do: what then cannot be stored is found by the check-back.
//
// The topic needs a checker. Where fn is a transaction of a SQL database, InTx needs none.
func (m *Messages) Do(ctx context.Context, topic string, msg *message.Message, fn func(ctx context.Context) error) error {
	if err := m.Prepare(ctx, topic, msg); err != nil {
		return err
	}
	err := fn(ctx)
	fault.Point("half.after_local")
	if errors.As(err, new(*nothingDone)) {
		return m.finish(ctx, msg.UUID, err, m.Rollback)
	}
	return m.finish(ctx, msg.UUID, err, nil)
}

// InTx stores msg, runs fn in a transaction of db whose first write is the witness, and lets the message go
// if that commits. Nobody has to write a checker. A crash at any point leaves the message to the
// check-back: it is sent if, and only if, the transaction committed.
//
// It may be called again with the same message, also while an earlier call is not over: one transaction of them commits
// at most. So one that fails drops the message only if it wins the tombstone.
//
// db is one of Config.Witnesses and not the outbox's. Options are those of millrace.InTx, and so are the
// errors; Retries runs fn again. It is refused inside of a transaction of db, which would end later.
func InTx[T any](ctx context.Context, m *Messages, db millrace.TxDB[T], topic string, msg *message.Message,
	fn func(ctx context.Context, tx T) error, options ...millrace.TxOption,
) error {
	if _, open := txn.From(ctx, db.TxnPool()); open {
		return fmt.Errorf("half: %w: it would decide about the message later", millrace.ErrTransactionOpen)
	}
	w, err := m.PrepareWitnessed(ctx, db, topic, msg)
	if err != nil {
		return err
	}
	err = millrace.InTx(ctx, db, func(ctx context.Context, tx T) error {
		if err := w.Write(ctx); err != nil {
			return err
		}
		return fn(ctx, tx)
	}, options...)
	fault.Point("half.after_local")
	if errors.As(err, new(*millrace.UnknownOutcomeError)) {
		return m.finish(ctx, msg.UUID, err, nil)
	}
	return m.finish(ctx, msg.UUID, err, func(ctx context.Context, id string) error { return m.settle(ctx, db.TxnPool(), id) })
}

// settle decides about a message whose local transaction has failed. Another one may not have: that of an earlier call
// with the same message, whose answer was lost, or which is open still. The tombstone tells.
func (m *Messages) settle(ctx context.Context, witnesses txn.Pool, id string) error {
	verdict, err := bury(ctx, witnesses, id)
	switch {
	case err != nil:
		return err
	case verdict == WasCommitted:
		return m.Commit(ctx, id)
	}
	return m.end(ctx, id, reasonTombstone)
}

// finish decides about the message, if it can be decided; fail does if there is an error. Whatever becomes of that, the
// caller hears what became of its own work.
func (m *Messages) finish(ctx context.Context, id string, err error, fail func(ctx context.Context, id string) error) error {
	ctx = context.WithoutCancel(ctx)
	ctx, cancel := context.WithTimeout(ctx, m.cfg.CheckTimeout)
	defer cancel()
	var left error
	switch {
	case err == nil:
		left = m.Commit(ctx, id)
	case fail != nil:
		left = fail(ctx, id)
	}
	if left != nil {
		m.log.WarnContext(ctx, "half message left to the check-back", "id", id, "error", left)
	}
	return err
}

// NothingDone marks an error of a local transaction as definite: nothing of it remains, and it can never
// commit, nor can that of an earlier call with the same message. Do then drops the message at once.
func NothingDone(err error) error {
	if err == nil {
		return nil
	}
	return &nothingDone{err}
}

type nothingDone struct{ error }

func (e *nothingDone) Unwrap() error { return e.error }
