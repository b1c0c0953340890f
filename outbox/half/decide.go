package half

import (
	"context"
	"fmt"

	"github.com/millrace-go/millrace/internal/fault"
	"github.com/millrace-go/millrace/internal/txn"
)

// Commit lets a message go: it is given to the outbox, in one transaction with the note that it was. To
// commit again is no error. A message that a checker had called rolled back is revived, and OnRevived
// told. One that was rolled back for good is ErrRolledBack.
func (m *Messages) Commit(ctx context.Context, id string) error {
	revived, err := m.commit(ctx, id)
	if err != nil {
		return fmt.Errorf("half: commit: %w", err)
	}
	if revived != nil {
		m.log.WarnContext(ctx, "a half message that its checker had called rolled back was committed", "id", id, "topic", revived.Topic)
		if m.cfg.OnRevived != nil {
			m.cfg.OnRevived(ctx, *revived)
		}
	}
	return nil
}

func (m *Messages) commit(ctx context.Context, id string) (revived *Info, err error) {
	err = txn.Run(ctx, m.pool, txn.Options{}, func(ctx context.Context, tx *txn.Tx) error {
		revived = nil
		h, err := m.load(ctx, tx, tx.Dialect(), id, forUpdate(tx.Dialect()))
		switch {
		case err != nil:
			return err
		case h.State == Committed:
			return nil
		case h.State == Ended && h.Reason != reasonChecker:
			return ErrRolledBack
		case h.State == Ended:
			revived = &h.Info
		}
		msg, err := m.content(ctx, tx, tx.Dialect(), id)
		if err != nil {
			return err
		}
		if err := m.box.Publish(ctx, h.Topic, msg); err != nil {
			return err
		}
		return decided(ctx, tx, id, Committed, "", true)
	})
	if err == nil {
		fault.Point("half.after_commit")
	}
	return revived, err
}

// Rollback drops a message for good. The caller knows that the local transaction can never commit, nor can that of an
// earlier try with the same message. To roll back again is no error; one that was committed is ErrCommitted.
func (m *Messages) Rollback(ctx context.Context, id string) error {
	if err := m.end(ctx, id, reasonRolledBack); err != nil {
		return fmt.Errorf("half: rollback: %w", err)
	}
	return nil
}

// end drops a message. What a checker ended keeps its content. The age of one that is dropped for its tombstone is looked
// at here, after the tombstone was written: whoever did that may have stood still before.
func (m *Messages) end(ctx context.Context, id, reason string) error {
	return txn.Run(ctx, m.pool, txn.Options{}, func(ctx context.Context, tx *txn.Tx) error {
		h, err := m.load(ctx, tx, tx.Dialect(), id, forUpdate(tx.Dialect()))
		switch {
		case err != nil:
			return err
		case h.State == Committed:
			return ErrCommitted
		case h.State == Ended && h.Reason != reasonChecker:
			return nil
		case reason == reasonTombstone && h.age >= m.cfg.Retention/2:
			return errTooOld
		}
		return decided(ctx, tx, id, Ended, reason, reason != reasonChecker)
	})
}

func decided(ctx context.Context, tx *txn.Tx, id string, state State, reason string, forget bool) error {
	text := `UPDATE millrace_half SET state = $1, reason = $2, decided_at = {now} WHERE id = $3`
	args := []any{string(state), reason, id}
	if forget {
		text = `UPDATE millrace_half SET state = $1, reason = $2, decided_at = {now}, metadata = '{}', payload = $4 WHERE id = $3`
		args = append(args, []byte{})
	}
	_, err := exec(ctx, tx, tx.Dialect(), text, args...)
	return err
}

// Resume has a parked message checked back again, with all its checks before it.
func (m *Messages) Resume(ctx context.Context, id string) error {
	dialect, err := m.pool.Dialect(ctx)
	if err != nil {
		return fmt.Errorf("half: resume: %w", err)
	}
	n, err := exec(ctx, m.pool, dialect,
		`UPDATE millrace_half SET state = 'prepared', checks = 0, next_check = {now} WHERE id = $1 AND state = 'parked'`, id)
	if err == nil && n == 0 {
		err = fmt.Errorf("%w that is parked: %s", ErrNotFound, id)
	}
	if err != nil {
		return fmt.Errorf("half: resume: %w", err)
	}
	return nil
}
