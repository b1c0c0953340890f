package forwarder

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/outbox"
	"github.com/millrace-go/millrace/outbox/outboxtest"
)

func TestAPauseIsObeyedByAllReplicasWithinAPoll(t *testing.T) {
	t.Parallel()
	for _, kind := range []outbox.PauseKind{outbox.PausedTopic, outbox.PausedDestination} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				store := outboxtest.NewMemory()
				fillTopic(store, "held", 1000, 50)
				fillTopic(store, "free", 300, 50)
				held, free := &broker{latency: 500 * time.Millisecond}, &broker{}
				cfg := Config{BatchRows: 20, ReadAheadRows: 1000, Routes: []Route{{Name: "held", Topics: []string{"held"}, Publisher: held}}}
				f, _, stop := start(t, store, free, cfg)
				_, _, stop2 := start(t, store, free, cfg)
				until(t, 20*time.Second, "it flows", func() bool { return len(held.ids()) > 200 })

				store.Pause(kind, "held")
				time.Sleep(defaultMaxPollInterval + 200*time.Millisecond)
				synctest.Wait()
				sent := len(held.ids())
				fillTopic(store, "held", 10, 10) // commits go on
				time.Sleep(time.Minute)
				synctest.Wait()
				require.Len(t, held.ids(), sent, "nothing is sent")
				require.Len(t, free.ids(), 300, "the other one goes on")
				require.Zero(t, f.Stats().Destinations[0].Read, "nothing is kept in memory")
				require.Equal(t, kind == outbox.PausedDestination, f.Stats().Destinations[0].Paused)
				require.True(t, f.Condition().Ready, "a pause is no fault")
				require.Len(t, store.Waiting(), 1010-sent, "what was in flight was settled")

				store.Resume(kind, "held")
				until(t, time.Minute, "all sent", func() bool { return len(store.Waiting()) == 0 })
				distinct := map[string]bool{}
				for _, id := range held.ids() {
					distinct[id] = true
				}
				require.Len(t, held.ids(), 1010)
				require.Len(t, distinct, 1000, "the ten that came later have the ids of others")
				require.NoError(t, stop())
				require.NoError(t, stop2())
			})
		})
	}
}

func TestAMessageThatWasCancelledIsNotPublished(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := outboxtest.NewMemory()
		var mu sync.Mutex
		cancelled := map[string]bool{}
		pub := &broker{}
		// A cancellation comes between the read and the mark of some.
		n := 0
		store.Intercept(func(op string) error {
			if op != "Mark" {
				return nil
			}
			for range 3 {
				mu.Lock()
				name := fmt.Sprintf("s%d", n*7%500)
				n++
				mu.Unlock()
				go func() {
					if store.Cancel(name) == nil {
						mu.Lock()
						defer mu.Unlock()
						cancelled[name] = true
					}
				}()
			}
			time.Sleep(time.Millisecond)
			return nil
		})
		for i := range 500 {
			key := fmt.Sprintf("k%d", i%20)
			e := outboxtest.Entry{ID: fmt.Sprintf("%s-%06d", key, i), Topic: "t", Key: key, Schedule: fmt.Sprintf("s%d", i)}
			if i%3 == 0 {
				e.Key = ""
			}
			if i%5 == 0 {
				e.Schedule = ""
			}
			store.Insert(e)
		}
		_, _, stop := start(t, store, pub, Config{BatchRows: 10})
		until(t, time.Minute, "all gone", func() bool { return len(store.Waiting()) == 0 })
		require.NoError(t, stop())
		require.NotEmpty(t, cancelled)
		require.Len(t, pub.ids(), 500-len(cancelled), "delivered and cancelled are disjoint and complete")
		for _, id := range pub.ids() {
			require.False(t, cancelled["s"+strings.TrimLeft(id[len(id)-6:], "0")], id)
		}
	})
}

func TestAMessageThatMayBeAboutToBeCancelledIsLookedAtAgainLater(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := outboxtest.NewMemory()
		positions := store.Insert(outboxtest.Entry{ID: "later", Topic: "t", Key: "k", Schedule: "s"})
		unlock := store.Lock(positions[0])
		count := counting(store)
		pub := &broker{}
		var dropped []string
		_, _, stop := start(t, store, pub, Config{Observers: []Observer{{OnDropped: func(_ context.Context, b Batch, why DropReason) {
			dropped = append(dropped, b.Messages[0].ID+" "+string(why))
		}}}})
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Less(t, count("Mark"), 300, "not in a hot loop")
		require.Empty(t, pub.ids())
		require.Equal(t, "later cancelled", dropped[0])
		unlock()
		until(t, 3*time.Second, "sent", func() bool { return slices.Equal(pub.ids(), []string{"later"}) })
		until(t, time.Second, "settled", func() bool { return len(store.Waiting()) == 0 })
		require.NoError(t, stop())
	})
}

func TestNothingIsPublishedThatCouldNotBeMarked(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := outboxtest.NewMemory()
		store.Insert(outboxtest.Entry{ID: "a", Topic: "t", Key: "k", Schedule: "s"})
		store.Intercept(func(op string) error {
			if op == "Mark" {
				return errDown
			}
			return nil
		})
		marked := 0
		pub := &broker{answer: func(*message.Message) error { marked++; return nil }}
		_, _, stop := start(t, store, pub, Config{})
		time.Sleep(10 * time.Second)
		synctest.Wait()
		require.Zero(t, marked)
		store.Intercept(nil)
		until(t, time.Second, "sent", func() bool { return len(pub.ids()) == 1 })
		require.NoError(t, stop())
	})
}
