package store_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/store"
	"github.com/millrace-go/millrace/store/storetest"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestMemoryKeepsTheRulesOfAStore(t *testing.T) {
	t.Parallel()
	races := 1000
	if testenv.Full() {
		races = 10_000
	}
	storetest.TestStore(t, func(testing.TB) store.Store { return new(store.Memory) }, races)
}

func TestAReplayKeepsToItsRate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := new(store.Memory)
		for _, id := range []string{"a", "b", "c", "d", "e"} {
			require.NoError(t, s.Put(t.Context(), store.Letter{Entry: store.Entry{Group: "g", MessageID: id}}))
		}
		begin := time.Now()
		order := store.Order{Filter: store.Filter{Group: "g"}, PerSecond: 2, Who: "ann", Why: "fixed"}
		r, err := store.Replay(t.Context(), s, order)
		require.NoError(t, err)
		require.Equal(t, 5, r.Done)
		require.Equal(t, 2*time.Second, time.Since(begin))
	})
}

func TestAReplayThatIsBrokenOffSaysHowFarItCame(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := new(store.Memory)
		for _, id := range []string{"a", "b", "c"} {
			require.NoError(t, s.Put(t.Context(), store.Letter{Entry: store.Entry{Group: "g", MessageID: id}}))
		}
		ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
		defer cancel()
		order := store.Order{Filter: store.Filter{Group: "g"}, PerSecond: 1, Who: "ann", Why: "fixed"}
		r, err := store.Replay(ctx, s, order)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, 2, r.Done)
		order.Letters = r.Letters
		r, err = store.Replay(t.Context(), s, order)
		require.NoError(t, err)
		require.Equal(t, store.Report{Letters: order.Letters, Done: 1, Gone: 2}, r)
	})
}

func TestWrongOrdersAreReportedAllAtOnce(t *testing.T) {
	t.Parallel()
	_, err := store.Replay(t.Context(), new(store.Memory), store.Order{Limit: -1})
	for _, part := range []string{"group is empty", "who decided", "must not be negative"} {
		require.ErrorContains(t, err, part)
	}
	require.False(t, errors.Is(err, store.ErrNotFound))
}
