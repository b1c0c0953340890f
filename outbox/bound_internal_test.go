package outbox

import (
	"errors"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestAProofBegunBeforeALoweringIsThrownAway(t *testing.T) {
	var b bound
	_, before := b.get()
	done := b.lower()
	_, during := b.get()
	b.set(7, before)
	b.set(7, during)
	done(nil)
	b.set(7, during)
	at, after := b.get()
	require.Zero(t, at)
	b.set(7, after)
	at, _ = b.get()
	require.EqualValues(t, 7, at)
}

func TestAReadBegunBeforeALoweringIsStale(t *testing.T) {
	var b bound
	b.set(7, 0)
	_, token := b.get()
	require.False(t, b.stale(token))
	b.set(8, token)
	require.False(t, b.stale(token), "a higher bound hides nothing from a read above a lower one")
	done := b.lower()
	require.True(t, b.stale(token))
	_, token = b.get()
	done(nil)
	require.True(t, b.stale(token))
}

func TestAfterAnUnansweredOperationTheBoundStaysAtTheBottomForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bound
		b.lower()(errors.New("no answer"))
		_, token := b.get()
		time.Sleep(boundTrust - time.Millisecond)
		b.set(7, token)
		at, _ := b.get()
		require.Zero(t, at)
		time.Sleep(time.Millisecond)
		b.set(7, token)
		at, _ = b.get()
		require.EqualValues(t, 7, at)
	})
}

func TestAProofWaitsForTheWritersThatWereThereWhenItBegan(t *testing.T) {
	var p proof
	require.False(t, p.wait(9, []string{"3/1", "4/1"}))
	require.False(t, p.wait(20, []string{"4/1", "5/1"}))
	require.Equal(t, []string{"4/1"}, p.writers, "who came later draws a higher position")
	require.False(t, p.wait(30, []string{"5/1", prepared}), "it may be 4/1")
	require.True(t, p.wait(40, []string{"5/1"}))
	require.EqualValues(t, 9, p.upto)
	require.True(t, new(proof).wait(9, nil))
}

func TestAReadDuringWhichTheBoundIsLoweredProvesNothing(t *testing.T) {
	t.Parallel()
	q := Read{Lanes: []int{3}, Topics: []string{"t"}, MaxRows: 10}
	var b bound
	b.sees(9, b.known())
	upto := func() int64 { return b.begin(q).above[0] }
	for name, during := range map[string]func(read func(between func())){
		"begun and ended during it": func(read func(func())) {
			read(func() { b.lower()(nil) })
		},
		"ended during it": func(read func(func())) {
			done := b.lower()
			read(func() { done(nil) })
		},
		"begun during it": func(read func(func())) {
			var done func(error)
			read(func() { done = b.lower() })
			done(nil)
		},
		"all the time": func(read func(func())) {
			done := b.lower()
			read(func() {})
			done(nil)
		},
	} {
		during(func(between func()) {
			k := b.begin(q)
			between()
			b.end(k, q, nil, math.MaxInt64, 10)
		})
		require.Zero(t, upto(), name)
	}
	b.end(b.begin(q), q, nil, math.MaxInt64, 10)
	require.EqualValues(t, 9, upto(), "else this test shows nothing")
}

func TestAReadDuringWhichAnotherMissedARowProvesNothing(t *testing.T) {
	t.Parallel()
	q := Read{Lanes: []int{3}, Topics: []string{"t"}, MaxRows: 10}
	row := Row{Ref: Ref{Pos: 5}, Lane: 3, Topic: "t"}
	var b bound
	b.sees(9, b.known())
	b.end(b.begin(q), q, []Row{row}, math.MaxInt64, 10)
	holder := q
	holder.Exclude = []int64{5}
	k := b.begin(holder)
	require.EqualValues(t, 9, k.above[0])
	require.EqualValues(t, 4, b.begin(q).above[0], "whoever reads does not have it")
	b.end(k, holder, nil, math.MaxInt64, 10)
	require.EqualValues(t, 4, b.begin(q).above[0])
}

func TestAProofFromBeforePositionsMayHaveBeenDrawnAgainIsNoneForReads(t *testing.T) {
	t.Parallel()
	var b bound
	before := b.known()
	b.reset()
	b.sees(9, before)
	require.Zero(t, b.seen)
	b.sees(9, b.known())
	require.EqualValues(t, 9, b.seen)
	b.reset()
	require.Zero(t, b.seen)
}

func TestRowsOfLanesThatNobodyAsksForAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bound
		read := func(lane int, rows ...Row) {
			q := Read{Lanes: []int{lane}, Topics: []string{"t"}, MaxRows: 10}
			for pos, r := range b.taken.rows {
				if r.part == b.taken.parts[readPart{lane, "t"}] {
					q.Exclude = append(q.Exclude, pos)
				}
			}
			b.end(b.begin(q), q, rows, math.MaxInt64, 10)
		}
		read(1, Row{Ref: Ref{Pos: 1}, Lane: 1, Topic: "t"})
		read(2, Row{Ref: Ref{Pos: 2}, Lane: 2, Topic: "t"})
		for range 3 {
			time.Sleep(boundTrust)
			read(1)
		}
		require.Len(t, b.taken.rows, 1)
		require.Len(t, b.taken.parts, 1)
	})
}
