package half_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/internal/txn"
	"github.com/millrace-go/millrace/outbox/half"
)

// Whoever did not hear what became of a call makes it again, and what fails then is only the second transaction.
func TestATransactionThatFailsDropsNothingThatAnEarlierOneHasCommitted(t *testing.T) {
	each(t, func(s *scene) {
		m := s.messages(half.Config{FirstCheck: time.Hour})
		w, err := m.PrepareWitnessed(s.Context(), s.biz, "orders", msg("m"))
		require.NoError(s, err)
		require.NoError(s, millrace.InTx(s.Context(), s.biz, func(ctx context.Context, tx *millrace.Tx) error {
			require.NoError(s, w.Write(ctx))
			return order(ctx, tx, "m")
		}))
		// The answer is lost.
		require.ErrorIs(s, half.InTx(s.Context(), m, s.biz, "orders", msg("m"), func(ctx context.Context, tx *millrace.Tx) error {
			return order(ctx, tx, "m")
		}), half.ErrRolledBack)
		s.wants(m, "m", half.Committed)
		require.Equal(s, 1, s.sent("m"))
	})
}

func TestATransactionThatFailsDropsNothingThatAnEarlierOneMayStillCommit(t *testing.T) {
	each(t, func(s *scene) {
		m := s.messages(half.Config{FirstCheck: time.Hour, CheckTimeout: 2 * time.Second})
		require.NoError(s, half.InTx(s.Context(), m, s.biz, "orders", msg("m"), func(ctx context.Context, tx *millrace.Tx) error {
			require.NoError(s, order(ctx, tx, "m"))
			impatient, cancel := context.WithTimeout(s.Context(), 200*time.Millisecond)
			defer cancel()
			require.Error(s, half.InTx(impatient, m, s.biz, "orders", msg("m"), func(context.Context, *millrace.Tx) error {
				s.Error("it has its witness")
				return nil
			}))
			s.wants(m, "m", half.Prepared)
			return nil
		}))
		s.wants(m, "m", half.Committed)
		require.Equal(s, 1, s.sent("m"))
	})
}

// paused is a database before whose transactions the process stands still.
type paused struct {
	txn.Beginner
	wait func()
}

func (p paused) TxnPool() txn.Pool { return p }

func (p paused) Begin(ctx context.Context, o txn.Options) (txn.Conn, error) {
	p.wait()
	return p.Beginner.Begin(ctx, o)
}

func TestATombstoneIsNotBelievedIfItWasWrittenTooLate(t *testing.T) {
	each(t, func(s *scene) {
		before := s.messages(half.Config{FirstCheck: time.Hour})
		w, err := before.PrepareWitnessed(s.Context(), s.biz, "orders", msg("m"))
		require.NoError(s, err)
		require.NoError(s, millrace.InTx(s.Context(), s.biz, func(ctx context.Context, _ *millrace.Tx) error { return w.Write(ctx) }))
		_, err = s.outRaw.ExecContext(s.Context(), `UPDATE millrace_half SET next_check = prepared_at`)
		require.NoError(s, err)

		// Its check is claimed, and then days pass, in which others purge the witness.
		m := s.messages(half.Config{MaxChecks: 1, Witnesses: map[string]millrace.DB{
			"orders": paused{s.biz.TxnBeginner(), func() {
				s.age(s.outRaw, s.outDriver, "millrace_half", "prepared_at")
				s.age(s.bizRaw, s.bizName, "millrace_barrier", "created_at")
				if n, err := before.Purge(s.Context()); n != 1 || err != nil {
					s.Errorf("purged %d: %v", n, err)
				}
			}},
		}})
		s.run(m)
		info := s.awaits(m, "m", half.Parked)
		require.Contains(s, info.LastError, "by hand")
	})
}
