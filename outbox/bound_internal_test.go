package outbox

import (
	"errors"
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
