package backoff_test

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/internal/backoff"
)

func TestCeilingDoublesUpToTheMaximum(t *testing.T) {
	t.Parallel()
	p := backoff.Policy{Base: time.Second, Max: 5 * time.Minute}
	require.Equal(t, time.Second, p.Ceiling(1))
	require.Equal(t, 2*time.Second, p.Ceiling(2))
	require.Equal(t, 256*time.Second, p.Ceiling(9))
	require.Equal(t, 5*time.Minute, p.Ceiling(10))
	require.Equal(t, 5*time.Minute, p.Ceiling(1_000_000))
	require.Equal(t, time.Duration(math.MaxInt64), backoff.Policy{Base: 1, Max: math.MaxInt64}.Ceiling(100))
}

func TestDelayIsSpreadOverTheWholeRange(t *testing.T) {
	t.Parallel()
	p := backoff.Policy{Base: time.Second, Max: 8 * time.Second}
	low, high := 0, 0
	for range 1000 {
		d := p.Delay(4)
		require.Positive(t, d)
		require.LessOrEqual(t, d, 8*time.Second)
		if d < 2*time.Second {
			low++
		}
		if d > 6*time.Second {
			high++
		}
	}
	require.Greater(t, low, 100)
	require.Greater(t, high, 100)
}

func TestZeroPolicyNeverWaits(t *testing.T) {
	t.Parallel()
	require.Zero(t, backoff.Policy{}.Delay(3))
}
