package half_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/outbox/half"
)

var errBusiness = errors.New("no more stock")

func TestAMessageIsSentIfAndOnlyIfItsTransactionCommitted(t *testing.T) {
	each(t, func(s *scene) {
		m := s.messages(half.Config{FirstCheck: time.Hour})
		require.NoError(s, half.InTx(s.Context(), m, s.biz, "orders", msg("good"), func(ctx context.Context, tx *millrace.Tx) error {
			require.Zero(s, s.sent("good"))
			return order(ctx, tx, "good")
		}))
		require.Equal(s, 1, s.sent("good"))
		s.wants(m, "good", half.Committed)
		var topic, key, metadata, payload string
		require.NoError(s, s.outRaw.QueryRowContext(s.Context(), `SELECT topic, order_key, metadata, payload FROM millrace_outbox`).
			Scan(&topic, &key, &metadata, &payload))
		require.Equal(s, []string{"orders", "key of good", `{"colour":"red"}`, "goodgoodgood"}, []string{topic, key, metadata, payload})

		require.ErrorIs(s, half.InTx(s.Context(), m, s.biz, "orders", msg("bad"), func(ctx context.Context, tx *millrace.Tx) error {
			require.NoError(s, order(ctx, tx, "bad"))
			return errBusiness
		}), errBusiness)
		require.Zero(s, s.sent("bad"))
		require.False(s, s.ordered("bad"))
		s.wants(m, "bad", half.Ended)
	})
}

func TestAnUndecidedMessageIsSentIfTheWitnessIsThere(t *testing.T) {
	each(t, func(s *scene) {
		m := s.messages(half.Config{})
		w, err := m.PrepareWitnessed(s.Context(), s.biz, "orders", msg("m"))
		require.NoError(s, err)
		require.NoError(s, millrace.InTx(s.Context(), s.biz, func(ctx context.Context, tx *millrace.Tx) error {
			require.NoError(s, w.Write(ctx))
			return order(ctx, tx, "m")
		}))
		// Here the process dies.
		s.run(m)
		s.awaits(m, "m", half.Committed)
		require.Equal(s, 1, s.sent("m"))
	})
}

func TestAnUndecidedMessageWithoutAWitnessIsDroppedAndItsTransactionCanNeverCommit(t *testing.T) {
	each(t, func(s *scene) {
		m := s.messages(half.Config{})
		w, err := m.PrepareWitnessed(s.Context(), s.biz, "orders", msg("m"))
		require.NoError(s, err)
		s.run(m)
		s.awaits(m, "m", half.Ended)

		// The process was only asleep.
		err = millrace.InTx(s.Context(), s.biz, func(ctx context.Context, tx *millrace.Tx) error {
			return errors.Join(w.Write(ctx), order(ctx, tx, "m"))
		})
		require.ErrorIs(s, err, half.ErrRolledBack)
		require.False(s, s.ordered("m"))
		require.ErrorIs(s, m.Commit(s.Context(), "m"), half.ErrRolledBack)
		require.Zero(s, s.sent("m"))
	})
}

func TestATransactionThatGoesOnWithoutItsWitnessIsRolledBack(t *testing.T) {
	each(t, func(s *scene) {
		m := s.messages(half.Config{})
		w, err := m.PrepareWitnessed(s.Context(), s.biz, "orders", msg("m"))
		require.NoError(s, err)
		s.run(m)
		s.awaits(m, "m", half.Ended)
		err = millrace.InTx(s.Context(), s.biz, func(ctx context.Context, tx *millrace.Tx) error {
			require.Error(s, w.Write(ctx))
			_ = order(ctx, tx, "m")
			return nil
		})
		require.Error(s, err)
		require.False(s, s.ordered("m"))
	})
}

// A transaction that is open when the message is checked back holds the place of the tombstone. Two
// replicas check at once.
func TestALongTransactionIsWaitedFor(t *testing.T) {
	each(t, func(s *scene) {
		m := s.messages(half.Config{MaxChecks: 1000, CheckTimeout: 500 * time.Millisecond})
		other := s.messages(half.Config{MaxChecks: 1000, CheckTimeout: 500 * time.Millisecond})
		require.NoError(s, half.InTx(s.Context(), m, s.biz, "orders", msg("m"), func(ctx context.Context, tx *millrace.Tx) error {
			require.NoError(s, order(ctx, tx, "m"))
			stopFirst, stopSecond := s.run(m), s.run(other)
			testenv.Eventually(s, time.Minute, "checked while open", func() bool {
				info, err := m.Get(s.Context(), "m")
				return err == nil && info.Checks >= 2
			})
			s.wants(m, "m", half.Prepared)
			stopFirst()
			stopSecond()
			return nil
		}))
		s.wants(m, "m", half.Committed)
		require.Equal(s, 1, s.sent("m"))
	})
}

func TestATransactionThatComesLaterThanMaxAgeFails(t *testing.T) {
	each(t, func(s *scene) {
		m := s.messages(half.Config{MaxAge: 2 * time.Second, FirstCheck: time.Hour})
		w, err := m.PrepareWitnessed(s.Context(), s.biz, "orders", msg("m"))
		require.NoError(s, err)
		testenv.Eventually(s, time.Minute, "it is too late", func() bool {
			err := millrace.InTx(s.Context(), s.biz, func(ctx context.Context, tx *millrace.Tx) error {
				if err := w.Write(ctx); err != nil {
					return err
				}
				return errBusiness
			})
			return errors.Is(err, half.ErrTooLate)
		})
		require.False(s, s.ordered("m"))
	})
}

// A witness older than half the retention may have been purged: that it is not there proves nothing.
func TestATombstoneIsNotBelievedAboutAnOldMessage(t *testing.T) {
	each(t, func(s *scene) {
		m := s.messages(half.Config{MaxChecks: 1})
		_, err := m.PrepareWitnessed(s.Context(), s.biz, "orders", msg("m"))
		require.NoError(s, err)
		s.age(s.outRaw, s.outDriver, "millrace_half", "prepared_at")
		s.run(m)
		info := s.awaits(m, "m", half.Parked)
		require.Contains(s, info.LastError, "by hand")
	})
}

func TestManyReplicasSendAMessageOnce(t *testing.T) {
	each(t, func(s *scene) {
		const messages = 40
		first := s.messages(half.Config{FirstCheck: time.Hour})
		for i := range messages {
			w, err := first.PrepareWitnessed(s.Context(), s.biz, "orders", msg(fmt.Sprint(i)))
			require.NoError(s, err)
			if i%2 == 0 {
				require.NoError(s, millrace.InTx(s.Context(), s.biz, func(ctx context.Context, _ *millrace.Tx) error { return w.Write(ctx) }))
			}
		}
		_, err := s.outRaw.ExecContext(s.Context(), `UPDATE millrace_half SET next_check = prepared_at`)
		require.NoError(s, err)
		var producers sync.WaitGroup
		for range 3 {
			m := s.messages(half.Config{})
			s.run(m)
			producers.Go(func() { // who also decides, late
				for i := 0; i < messages; i += 4 {
					if err := m.Commit(s.Context(), fmt.Sprint(i)); err != nil {
						s.Error(err)
					}
				}
			})
		}
		producers.Wait()
		testenv.Eventually(s, time.Minute, "all are decided", func() bool {
			return s.one(s.outRaw, `SELECT count(*) FROM millrace_half WHERE state = 'prepared'`) == 0
		})
		for i := range messages {
			require.Equal(s, (i+1)%2, s.sent(fmt.Sprint(i)), i)
		}
	})
}

func TestWhatIsOldIsPurgedAndNothingElse(t *testing.T) {
	each(t, func(s *scene) {
		m := s.messages(half.Config{FirstCheck: time.Hour})
		require.NoError(s, half.InTx(s.Context(), m, s.biz, "orders", msg("old"), func(context.Context, *millrace.Tx) error { return nil }))
		_, err := m.PrepareWitnessed(s.Context(), s.biz, "orders", msg("undecided"))
		require.NoError(s, err)
		n, err := m.Purge(s.Context())
		require.NoError(s, err)
		require.Zero(s, n)
		s.age(s.outRaw, s.outDriver, "millrace_half", "decided_at")
		s.age(s.bizRaw, s.bizName, "millrace_barrier", "created_at")
		n, err = m.Purge(s.Context())
		require.NoError(s, err)
		require.EqualValues(s, 2, n)
		_, err = m.Get(s.Context(), "old")
		require.ErrorIs(s, err, half.ErrNotFound)
		s.wants(m, "undecided", half.Prepared)
	})
}

func TestPrepareAgain(t *testing.T) {
	each(t, func(s *scene) {
		m := s.messages(half.Config{FirstCheck: time.Hour, Checkers: map[string]half.Checker{"": never}})
		require.NoError(s, m.Prepare(s.Context(), "orders", msg("m")))
		require.NoError(s, m.Prepare(s.Context(), "orders", msg("m")), "the same message")
		require.ErrorIs(s, m.Prepare(s.Context(), "invoices", msg("m")), half.ErrConflict)
		changed := msg("m")
		changed.Payload = []byte("changed")
		require.ErrorIs(s, m.Prepare(s.Context(), "orders", changed), half.ErrConflict)
		require.NoError(s, m.Commit(s.Context(), "m"))
		require.NoError(s, m.Commit(s.Context(), "m"), "again")
		require.ErrorIs(s, m.Prepare(s.Context(), "orders", msg("m")), half.ErrCommitted)
		require.ErrorIs(s, m.Rollback(s.Context(), "m"), half.ErrCommitted)
		require.ErrorIs(s, m.Rollback(s.Context(), "another"), half.ErrNotFound)
		require.Equal(s, 1, s.sent("m"))

		require.ErrorIs(s, millrace.InTx(s.Context(), s.out, func(ctx context.Context, _ *millrace.Tx) error {
			return m.Prepare(ctx, "orders", msg("inside"))
		}), millrace.ErrTransactionOpen)
	})
}
