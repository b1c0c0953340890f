package outbox_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/outbox"
	"github.com/millrace-go/millrace/outbox/outboxtest"
)

// A read of many lanes looks below a position that the one before has made likely to be high enough.
func TestReadsOfABacklogOnMariaDBReturnTheLowestRowsWhereverTheyLie(t *testing.T) {
	t.Parallel()
	b := open(t, mariadb, outbox.Config{})
	q := outbox.Read{Topics: []string{"orders", "bills"}, BusyKeys: []string{"busy"}, MaxRows: 40, MaxBytes: 1 << 20}
	for lane := range outbox.Lanes {
		if lane != 13 {
			q.Lanes = append(q.Lanes, lane)
		}
	}
	var wanted []int64
	n := 0
	publish := func(count, holes int) {
		var entries []outboxtest.Entry
		for range count {
			n++
			e := outboxtest.Entry{ID: fmt.Sprint(n), Topic: q.Topics[n%2], Lane: rand.IntN(outbox.Lanes)}
			switch other := rand.IntN(10 + holes); {
			case other == 0:
				e.Lane = 13
			case other == 1:
				e.Key = "busy"
			case other >= 10:
				e.Topic = "another"
			}
			entries = append(entries, e)
		}
		for i, pos := range b.insert(entries...) {
			if e := entries[i]; e.Topic != "another" && e.Key == "" && e.Lane != 13 {
				wanted = append(wanted, pos)
			}
		}
	}
	for _, holes := range []int{0, 200, 5, 0} { // dense, sparse, dense
		publish(300, holes)
	}
	for round := 0; len(wanted) > 0; round++ {
		rows, err := b.box.Store().Read(t.Context(), q)
		require.NoError(t, err)
		var got []int64
		for _, r := range rows {
			got = append(got, r.Pos)
		}
		require.Equal(t, wanted[:min(len(wanted), q.MaxRows)], got, "round %d", round)
		wanted = wanted[len(got):]
		if q.Exclude = append(q.Exclude, got...); rand.IntN(3) == 0 { // some are settled, and one of those in flight comes back
			back := rand.IntN(len(q.Exclude))
			wanted = append([]int64{q.Exclude[back]}, wanted...)
			slices.Sort(wanted)
			q.Exclude = slices.Delete(q.Exclude, back, back+1)
		}
		if round < 3 {
			publish(100, 0)
		}
		q.MaxRows = 20 + rand.IntN(40)
	}
}
