package half_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/outbox/half"
)

func never(context.Context, half.Info) (half.Verdict, error) { return half.Unknown, nil }

func says(v half.Verdict) map[string]half.Checker {
	return map[string]half.Checker{"orders": func(context.Context, half.Info) (half.Verdict, error) { return v, nil }}
}

func TestAMessageThatItsCheckerCallsCommittedIsSent(t *testing.T) {
	each(t, func(s *scene) {
		m := s.messages(half.Config{Checkers: says(half.WasCommitted)})
		require.NoError(s, m.Prepare(s.Context(), "orders", msg("m")))
		s.run(m)
		s.awaits(m, "m", half.Committed)
		require.Equal(s, 1, s.sent("m"))
	})
}

func TestTheWordRolledBackIsNotActedOnWhileTheTransactionMayCommit(t *testing.T) {
	each(t, func(s *scene) {
		var asked atomic.Int32
		m := s.messages(half.Config{MaxAge: time.Hour, Checkers: map[string]half.Checker{
			"orders": func(context.Context, half.Info) (half.Verdict, error) {
				asked.Add(1)
				return half.WasRolledBack, nil
			},
		}})
		require.NoError(s, m.Prepare(s.Context(), "orders", msg("m")))
		stop := s.run(m)
		testenv.Eventually(s, time.Minute, "it was asked", func() bool { return asked.Load() > 0 })
		stop()
		require.Zero(s, s.wants(m, "m", half.Prepared).Checks, "it was an answer")
		require.NoError(s, m.Commit(s.Context(), "m"))
		require.Equal(s, 1, s.sent("m"))
	})
}

func TestAMessageThatItsCheckerCalledRolledBackIsRevivedByACommit(t *testing.T) {
	each(t, func(s *scene) {
		var revived atomic.Pointer[half.Info]
		m := s.messages(half.Config{
			MaxAge: time.Millisecond, Checkers: says(half.WasRolledBack),
			OnRevived: func(_ context.Context, i half.Info) { revived.Store(&i) },
		})
		require.NoError(s, m.Prepare(s.Context(), "orders", msg("m")))
		stop := s.run(m)
		s.awaits(m, "m", half.Ended)
		stop() // it would end the next one while that is prepared
		require.Zero(s, s.sent("m"))
		require.NoError(s, m.Commit(s.Context(), "m"))
		require.Equal(s, 1, s.sent("m"))
		require.Equal(s, "m", revived.Load().ID)

		require.NoError(s, m.Prepare(s.Context(), "orders", msg("n")))
		s.run(m)
		s.awaits(m, "n", half.Ended)
		require.NoError(s, m.Rollback(s.Context(), "n"))
		require.ErrorIs(s, m.Commit(s.Context(), "n"), half.ErrRolledBack, "after the producer's own word")
	})
}

func TestAMessageWithoutADefiniteAnswerIsParkedAndCanBeResumed(t *testing.T) {
	answers := map[string]half.Checker{
		"unknown": never,
		"error":   func(context.Context, half.Info) (half.Verdict, error) { return half.WasCommitted, errors.New("away") },
		"panic":   func(context.Context, half.Info) (half.Verdict, error) { panic("checker") },
		"garbage": func(context.Context, half.Info) (half.Verdict, error) { return 7, nil },
		"slow": func(ctx context.Context, _ half.Info) (half.Verdict, error) {
			<-ctx.Done()
			return half.Unknown, ctx.Err()
		},
	}
	each(t, func(s *scene) {
		parked := make(chan half.Info, len(answers))
		m := s.messages(half.Config{
			MaxChecks: 3, CheckTimeout: 50 * time.Millisecond, Checkers: answers,
			OnParked: func(_ context.Context, i half.Info) { parked <- i },
		})
		for topic := range answers {
			require.NoError(s, m.Prepare(s.Context(), topic, msg(topic)))
		}
		s.run(m)
		for range answers {
			i := <-parked
			require.Equal(s, 3, i.Checks)
			require.Equal(s, i.Topic != "unknown", i.LastError != "", i)
		}
		page, err := m.List(s.Context(), half.Parked, "", 3)
		require.NoError(s, err)
		require.Len(s, page, 3)
		rest, err := m.List(s.Context(), half.Parked, page[2].ID, 10)
		require.NoError(s, err)
		require.Len(s, rest, 2)

		require.NoError(s, m.Resume(s.Context(), "unknown"))
		require.Equal(s, 3, (<-parked).Checks, "all of its checks again")
		require.ErrorIs(s, m.Resume(s.Context(), "nobody"), half.ErrNotFound)
		require.NoError(s, m.Commit(s.Context(), "error"))
		require.NoError(s, m.Rollback(s.Context(), "panic"))
		require.Equal(s, []int{1, 0}, []int{s.sent("error"), s.sent("panic")})
	})
}

// In a rolling deploy a replica may not know a topic yet.
func TestAReplicaThatHasNobodyToAskCostsNoCheck(t *testing.T) {
	each(t, func(s *scene) {
		old := s.messages(half.Config{MaxChecks: 1, Checkers: map[string]half.Checker{"invoices": never}})
		current := s.messages(half.Config{MaxChecks: 1, Checkers: says(half.WasCommitted)})
		require.NoError(s, current.Prepare(s.Context(), "orders", msg("m")))
		stop := s.run(old)
		testenv.Eventually(s, time.Minute, "the old one looked", func() bool {
			return s.one(s.outRaw, `SELECT claim FROM millrace_half`) > 2
		})
		stop()
		s.wants(current, "m", half.Prepared)
		s.run(current)
		s.awaits(current, "m", half.Committed)
	})
}

func TestDoLeavesWhatIsNotDefiniteToTheCheckBack(t *testing.T) {
	each(t, func(s *scene) {
		m := s.messages(half.Config{FirstCheck: time.Hour, Checkers: map[string]half.Checker{"": never}})
		do := func(id string, err error) error {
			return m.Do(s.Context(), "orders", msg(id), func(context.Context) error { return err })
		}
		require.NoError(s, do("done", nil))
		s.wants(m, "done", half.Committed)
		require.ErrorIs(s, do("unsure", errBusiness), errBusiness)
		s.wants(m, "unsure", half.Prepared)
		require.ErrorIs(s, do("definite", half.NothingDone(errBusiness)), errBusiness)
		s.wants(m, "definite", half.Ended)
		require.Panics(s, func() {
			_ = m.Do(s.Context(), "orders", msg("panic"), func(context.Context) error { panic("business") })
		})
		s.wants(m, "panic", half.Prepared)

		ctx, cancel := context.WithCancel(s.Context())
		require.NoError(s, m.Do(ctx, "orders", msg("cancelled"), func(context.Context) error { cancel(); return nil }))
		s.wants(m, "cancelled", half.Committed)

		bare, err := half.New(s.out, s.box, half.Config{})
		require.NoError(s, err)
		require.ErrorIs(s, bare.Do(s.Context(), "orders", msg("x"), nil), half.ErrNoChecker)
	})
}
