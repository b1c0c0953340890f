package outbox

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// Else each read of a few busy lanes would be made twice: the first time it looks at too little of each.
func TestAReadLooksAtMoreOfEachLaneWhileAFewLanesFillIt(t *testing.T) {
	t.Parallel()
	q := Read{Topics: []string{"t"}, MaxRows: 500}
	for lane := range Lanes {
		q.Lanes = append(q.Lanes, lane)
	}
	answer := func(lanes, perLane int) (rows []Row) {
		for i := range min(q.MaxRows, lanes*perLane) {
			rows = append(rows, Row{Lane: i % lanes, Topic: "t"})
		}
		return rows
	}
	for lanes, want := range map[int]bool{64: false, 32: false, 31: true, 20: true, 1: true} {
		few, full := fromFew(q, answer(lanes, 500))
		require.True(t, full)
		require.Equal(t, want, few, "%d lanes", lanes)

		perLane := share(q, shareOfMany)
		if few {
			perLane = share(q, shareOfFew)
		}
		rows := answer(lanes, perLane)
		require.Equal(t, lanes < 16, short(q, rows, len(rows), perLane), "%d lanes", lanes)
	}
	_, full := fromFew(q, answer(64, 7))
	require.False(t, full)
}
