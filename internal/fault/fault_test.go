package fault_test

import (
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/internal/fault"
)

func TestAPointRunsItsActionAtTheNthHitAndNeverAgain(t *testing.T) {
	var hits, ran int
	disarm := fault.Arm("here", 3, func() { ran = hits })
	defer disarm()
	for hits = 1; hits <= 10; hits++ {
		fault.Point("elsewhere")
		fault.Point("here")
	}
	require.Equal(t, 3, ran)
}

func TestADisarmedPointDoesNothing(t *testing.T) {
	disarm := fault.Arm("here", 1, func() { t.Error("ran") })
	other := 0
	defer fault.Arm("here", 1, func() { other++ })()
	disarm()
	disarm()
	fault.Point("here")
	require.Equal(t, 1, other, "an action of somebody else on the same point")
}

func TestAnActionMayArmItsPointAgain(t *testing.T) {
	ran := 0
	var again func()
	again = func() {
		if ran++; ran < 3 {
			fault.Arm("here", 1, again)
		}
	}
	fault.Arm("here", 1, again)
	for range 5 {
		fault.Point("here")
	}
	require.Equal(t, 3, ran)
}

func TestPointsHitConcurrentlyRunTheActionOnce(t *testing.T) {
	var ran atomic.Int64
	defer fault.Arm("here", 50, func() { ran.Add(1) })()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 100 {
				fault.Point("here")
			}
		})
	}
	wg.Wait()
	require.EqualValues(t, 1, ran.Load())
}

func TestArmRefusesACountBelowOne(t *testing.T) {
	require.Panics(t, func() { fault.Arm("here", 0, func() {}) })
}

func TestAnUnarmedPointAllocatesNothing(t *testing.T) {
	require.Zero(t, testing.AllocsPerRun(100, func() { fault.Point("here") }))
}

func BenchmarkPointUnarmed(b *testing.B) {
	for b.Loop() {
		fault.Point("here")
	}
}
