package forwarder

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/outbox/outboxtest"
)

func down(*message.Message) error { return errDown }

// asked is a broker that can be asked whether it is reached.
type asked struct{ broker }

func (a *asked) Check(context.Context) error {
	a.mu.Lock()
	answer := a.answer
	a.mu.Unlock()
	if answer != nil {
		return answer(nil)
	}
	return nil
}

func TestAReplicaThatIsCutFromItsBrokerLeavesItsLanesToOneThatIsNot(t *testing.T) {
	t.Parallel()
	for _, can := range []bool{true, false} {
		t.Run(fmt.Sprintf("its publisher can be asked %v", can), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				store := outboxtest.NewMemory()
				cut, fine := &asked{}, &broker{}
				pub := message.Publisher(cut)
				if !can {
					pub = &cut.broker
				}
				a, _, stop := start(t, store, pub, Config{})
				b, _, stop2 := start(t, store, fine, Config{})
				until(t, 10*time.Second, "shared", func() bool { return a.Stats().Lanes == 32 && b.Stats().Lanes == 32 })
				cut.set(down)
				fill(store, 1000, 100)
				began := time.Now()
				until(t, 2*time.Minute, "all sent", func() bool { return len(store.Waiting()) == 0 })
				require.Less(t, time.Since(began), 38*time.Second+2*time.Second, "30 s, and a lease")
				require.Greater(t, time.Since(began), 30*time.Second)
				distinct, duplicates := requireOrder(t, fine.ids())
				require.Zero(t, duplicates)
				require.Equal(t, 1000, distinct+len(cut.ids()))
				if can {
					time.Sleep(10 * time.Minute)
					require.Zero(t, a.Stats().Lanes, "it claims none before it reaches it")
					require.Equal(t, 64, b.Stats().Lanes)
				}
				cut.set(nil)
				until(t, 10*time.Minute, "shared again", func() bool { return a.Stats().Lanes == 32 && b.Stats().Lanes == 32 })
				require.NoError(t, stop())
				require.NoError(t, stop2())
			})
		})
	}
}

func TestReplicasThatAllMissTheirBrokerKeepTheLanes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := outboxtest.NewMemory()
		fill(store, 1000, 100)
		pub := &asked{}
		pub.set(down)
		a, _, stop := start(t, store, pub, Config{})
		b, _, stop2 := start(t, store, pub, Config{})
		until(t, 10*time.Second, "shared", func() bool { return a.Stats().Lanes == 32 && b.Stats().Lanes == 32 })
		for range 120 { // they would leave after 30
			time.Sleep(time.Second)
			require.Equal(t, []int{32, 32}, []int{a.Stats().Lanes, b.Stats().Lanes})
		}
		pub.set(nil)
		until(t, 20*time.Second, "all sent", func() bool { return len(store.Waiting()) == 0 })
		require.NoError(t, stop())
		require.NoError(t, stop2())
	})
}

// Each of two replicas misses another destination: one gives way, and not both for ever by turns.
func TestReplicasThatMissDifferentBrokersDoNotAllGiveWay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := outboxtest.NewMemory()
		fine, cutX, cutY := &asked{}, &asked{}, &asked{}
		cutX.set(down)
		cutY.set(down)
		route := func(x, y message.Publisher) Config {
			return Config{Routes: []Route{{Name: "x", Topics: []string{"x"}, Publisher: x}, {Name: "y", Topics: []string{"y"}, Publisher: y}}}
		}
		a, _, stop := start(t, store, fine, route(cutX, fine))
		b, _, stop2 := start(t, store, fine, route(fine, cutY))
		held := 0
		for i := range 600 {
			for _, topic := range []string{"x", "y", "t"} {
				key := fmt.Sprintf("%s.k%d", topic, i%40)
				store.Insert(outboxtest.Entry{ID: fmt.Sprintf("%s-%06d", key, i), Topic: topic, Key: key})
			}
			time.Sleep(time.Second)
			if a.Stats().Lanes+b.Stats().Lanes == 64 {
				held++
			}
		}
		require.Greater(t, held, 560, "somebody does the work")
		require.NotZero(t, len(fine.ids()))
		cutX.set(nil)
		cutY.set(nil)
		until(t, 5*time.Minute, "all sent", func() bool { return len(store.Waiting()) == 0 })
		require.NoError(t, stop())
		require.NoError(t, stop2())
	})
}
