package middleware_test

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/components/delay"
	"github.com/ThreeDotsLabs/watermill/message"
	stock "github.com/ThreeDotsLabs/watermill/message/router/middleware"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/middleware"
)

// A message that fails again and again waits longer each time. The stock DelayOnError cuts its multiplier down
// to a whole number, and without a MaxInterval does not wait at all from the second time on.
func TestDelaysGrowOtherThanWithTheStockDelayOnError(t *testing.T) {
	t.Parallel()
	const first, waits = 10 * time.Second, 4
	synctest.Test(t, func(t *testing.T) {
		longest := make([]time.Duration, waits)
		n := 0
		b := newBench(t, middleware.DelayedConfig{MaxAttempts: waits + 1, InitialDelay: first,
			OnDeferred: func(_ *message.Message, _ int, _ error, delay time.Duration) {
				longest[n] = max(longest[n], delay)
				n++
			}}, fail)
		for i := range 50 { // the waits are random: the longest of many are looked at
			n = 0
			require.NoError(t, b.fromBroker(fmt.Sprint(i)))
			for b.stats().Stored > 0 {
				time.Sleep(time.Second)
				b.due()
			}
		}
		require.True(t, growing(longest), "%v", longest)
	})
	if !testenv.Full() {
		return
	}
	for _, d := range []stock.DelayOnError{
		{InitialInterval: first, Multiplier: 1.5, MaxInterval: time.Hour},
		{InitialInterval: first, Multiplier: 2},
	} {
		msg := delivery(t.Context(), "m", "p")
		var got []time.Duration
		for range waits {
			_, err := d.Middleware(fail)(msg)
			require.ErrorIs(t, err, errHandler)
			wait, err := time.ParseDuration(msg.Metadata.Get(delay.DelayedForKey))
			require.NoError(t, err)
			got = append(got, wait)
		}
		require.False(t, growing(got), "the stock piece keeps this promise now: %v", got)
	}
}

// growing reports whether each wait is longer than the one before.
func growing(waits []time.Duration) bool {
	return slices.IsSorted(waits) && len(slices.Compact(slices.Clone(waits))) == len(waits)
}
