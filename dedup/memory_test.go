package dedup_test

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/dedup"
	"github.com/millrace-go/millrace/dedup/deduptest"
	"github.com/millrace-go/millrace/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestMemoryKeepsTheRulesOfAStore(t *testing.T) {
	t.Parallel()
	deduptest.TestStore(t, func(testing.TB) dedup.Store { return new(dedup.Memory) })
}

func TestMemoryForgetsWithoutAGoroutine(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var m dedup.Memory
		for i := range 10_000 {
			key := dedup.Key{Consumer: "c", MessageID: fmt.Sprint(i)}
			_, err := m.Claim(t.Context(), key, dedup.Request{Owner: "o", Lease: time.Second, TTL: time.Second})
			require.NoError(t, err)
			time.Sleep(100 * time.Millisecond) // the bubble's clock
		}
		require.Less(t, m.Len(), 200, "ten records live at a time")
	})
}

func TestDerivedIDsAreTheSameOnEveryRunAndDifferOtherwise(t *testing.T) {
	t.Parallel()
	seen := map[string]string{}
	for _, k := range []dedup.Key{{Consumer: "a", MessageID: "bc"}, {Consumer: "ab", MessageID: "c"}, {Consumer: "", MessageID: "abc"}, {Consumer: "a", MessageID: "bd"}} {
		for i := range 300 {
			id := dedup.DerivedID(k, i)
			require.Equal(t, id, dedup.DerivedID(k, i))
			require.True(t, dedup.IsDerived(id), id)
			require.Empty(t, seen[id])
			seen[id] = fmt.Sprint(k, i)
		}
	}
	for _, id := range []string{"", "6d696c6c-", "018f2f3e-7b1a-7c3d-9a55-0123456789ab", "6d696c6c-7b1a-7c3d-9a55-0123456789ab"} {
		require.False(t, dedup.IsDerived(id), id)
	}
}

func ExampleMemory() {
	ctx := context.Background()
	var store dedup.Memory
	key := dedup.Key{Consumer: "billing", MessageID: "order-1"}
	req := dedup.Request{Owner: "worker-a", Lease: 30 * time.Second, TTL: 24 * time.Hour}

	first, _ := store.Claim(ctx, key, req)
	fmt.Println(first.Verdict == dedup.Claimed, "attempt", first.Attempts)

	req.Owner = "worker-b"
	second, _ := store.Claim(ctx, key, req)
	fmt.Println(second.Verdict == dedup.Busy)

	_, _ = store.Done(ctx, key, "worker-a", []byte("receipt 7"), 24*time.Hour)
	third, _ := store.Claim(ctx, key, req)
	fmt.Println(third.Verdict == dedup.Handled, string(third.Result))
	// Output:
	// true attempt 1
	// true
	// true receipt 7
}
