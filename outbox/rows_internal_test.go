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
	for _, lanes := range []int{64, 63, 32, 20, 7, 2, 1} {
		first := fairPart(q, 0)
		require.Equal(t, 10, first)
		require.Equal(t, lanes*first < q.MaxRows, short(q, answer(lanes, first), lanes*first, first), "%d lanes", lanes)

		parts := spread(answer(lanes, 500))
		require.Equal(t, lanes, parts)
		then := fairPart(q, parts)
		require.False(t, short(q, answer(lanes, then), q.MaxRows, then), "%d lanes", lanes)
		require.LessOrEqual(t, then*lanes, q.MaxRows*3/2)
	}
}
