package forwarder

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/outbox/outboxtest"
)

// The exchange of topic A is missing, A has thousands of messages in front, and B flows to the same broker.
func TestAMissingExchangeOfOneTopicParksItsMessagesAndLeavesTheOthers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const bad = 400 // more than what is read ahead
		store := outboxtest.NewMemory()
		fillTopic(store, "a", bad, bad)
		pub := &broker{latency: 2 * time.Millisecond, answer: func(m *message.Message) error {
			if strings.HasPrefix(m.UUID, "a.") {
				return refusedError{"channel_closed"}
			}
			return nil
		}}
		_, _, stop := start(t, store, pub, Config{MaxAttempts: 3, BatchRows: 60})
		worst, sent := time.Duration(0), 0
		for ; len(store.Dead()) < bad; sent++ {
			began := time.Now()
			store.Insert(outboxtest.Entry{ID: fmt.Sprintf("b.k%d-%06d", sent%20, sent), Topic: "b", Key: fmt.Sprintf("b.k%d", sent%20)})
			until(t, time.Minute, "sent", func() bool { return len(pub.ids()) == sent+1 })
			worst = max(worst, time.Since(began))
			time.Sleep(100 * time.Millisecond)
			require.Less(t, sent, 5000, "%d parked", len(store.Dead()))
		}
		require.Less(t, worst, 10*time.Second, "it would wait for a minute behind all attempts of the others")
		for _, dead := range store.Dead() {
			require.Equal(t, 3, dead.Why.Attempt)
			require.Equal(t, "a", dead.Topic)
		}
		requireOrder(t, pub.ids())
		until(t, 10*time.Second, "settled", func() bool { return len(store.Waiting()) == 0 })
		require.NoError(t, stop())
		t.Logf("worst latency of the other topic %v, %d messages", worst, sent)
	})
}

func TestWhatIsRefusedLikeEverythingElseHidesNothingBehindIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := outboxtest.NewMemory()
		fillTopic(store, "a", 1000, 1000)
		store.Insert(outboxtest.Entry{ID: "good-000001", Topic: "b", Key: "good"})
		pub := &broker{answer: refusing("a.", "no_route")}
		f, _, stop := start(t, store, pub, Config{BatchRows: 50, RetryMax: time.Hour}) // of which 300 are read ahead
		until(t, 5*time.Minute, "the good one sent", func() bool { return len(pub.ids()) == 1 })
		require.Empty(t, store.Dead())
		counted := 0
		for _, row := range store.Waiting() {
			counted += row.Attempts
		}
		require.Less(t, counted, 3*alikeLimit+100, "most refusals count nothing")
		require.NotZero(t, f.Stats().Deferred)
		pub.set(nil)
		until(t, 2*time.Hour, "all sent", func() bool { return len(store.Waiting()) == 0 })
		requireOrder(t, pub.ids())
		require.NoError(t, stop())
	})
}

func TestAnOutageOfRefusalsCostsNoAttempts(t *testing.T) {
	t.Parallel()
	lasts := time.Hour // all attempts, if they counted, would be used up in half of it
	if testenv.Full() {
		lasts = 6 * time.Hour
	}
	synctest.Test(t, func(t *testing.T) {
		store := outboxtest.NewMemory()
		fill(store, 100, 100)
		pub := &broker{answer: refusing("", "no_route")}
		f, _, stop := start(t, store, pub, Config{})
		time.Sleep(lasts)
		synctest.Wait()
		require.ErrorContains(t, f.Health(t.Context()), "refuses everything")
		require.Empty(t, store.Dead())
		for _, row := range store.Waiting() {
			require.LessOrEqual(t, row.Attempts, 1)
		}
		pub.set(nil)
		until(t, 6*time.Minute, "all sent", func() bool { return len(store.Waiting()) == 0 })
		require.NoError(t, f.Health(t.Context()))
		require.NoError(t, stop())
	})
}
