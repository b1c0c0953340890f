package forwarder

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/outbox"
	"github.com/millrace-go/millrace/outbox/outboxtest"
)

func TestWithoutFaultsEachMessageIsPublishedOnceAndInOrder(t *testing.T) {
	t.Parallel()
	for _, ordered := range []bool{false, true} {
		t.Run(fmt.Sprintf("publisher keeps key order %v", ordered), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				store := outboxtest.NewMemory()
				fill(store, 3000, 50)
				pub := &broker{latency: time.Millisecond, ordered: ordered}
				f, _, stop := start(t, store, pub, Config{})
				until(t, time.Minute, "all settled", func() bool { return len(store.Waiting()) == 0 })
				distinct, duplicates := requireOrder(t, pub.ids())
				require.Equal(t, 3000, distinct)
				require.Zero(t, duplicates)
				require.NoError(t, stop())
				require.Equal(t, int64(3000), f.Stats().Settled)
				require.Empty(t, store.Held(), "lanes are released")
			})
		})
	}
}

func TestOneHotKeyDoesNotHideTheOthers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := outboxtest.NewMemory()
		for i := range 2000 {
			store.Insert(outboxtest.Entry{ID: fmt.Sprintf("hot-%06d", i), Topic: "t", Key: "hot"})
		}
		fill(store, 100, 20)
		pub := &broker{latency: 10 * time.Millisecond}
		_, _, stop := start(t, store, pub, Config{BatchRows: 100})
		began := time.Now()
		others := func() (n int) {
			for _, id := range pub.ids() {
				if id[0] == 'k' {
					n++
				}
			}
			return n
		}
		until(t, time.Minute, "others delivered", func() bool { return others() == 100 })
		require.Less(t, time.Since(began), time.Second, "the hot key alone takes 20 s")
		require.NoError(t, stop())
		requireOrder(t, pub.ids())
	})
}

func TestACommitIsSentWithinTheCoolDownWhateverTheLoopDoes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := outboxtest.NewMemory()
		pub := &broker{}
		_, wake, stop := start(t, store, pub, Config{PollInterval: time.Hour, MaxPollInterval: time.Hour, RetryMax: 2 * time.Hour})
		synctest.Wait()
		for i := range 300 {
			at := time.Now()
			store.Insert(outboxtest.Entry{ID: fmt.Sprintf("k-%06d", i), Topic: "t", Key: "k"})
			wake.ring(1 << outbox.Lane("k"))
			time.Sleep(time.Duration(i*37) * time.Microsecond)
			until(t, 10*time.Millisecond, "sent", func() bool { return len(pub.ids()) == i+1 })
			require.LessOrEqual(t, pub.got[i].at.Sub(at), 2*coolDown)
		}
		require.NoError(t, stop())
	})
}

func TestTheFirstMessageOfANewTopicNeedsNoPoll(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := outboxtest.NewMemory()
		pub := &broker{}
		_, wake, stop := start(t, store, pub, Config{})
		time.Sleep(3 * time.Second)
		for i := range 5 {
			store.Insert(outboxtest.Entry{ID: fmt.Sprint(i), Topic: fmt.Sprint("topic", i), Key: "k"})
			wake.ring(1 << outbox.Lane("k"))
			time.Sleep(5 * time.Millisecond)
			synctest.Wait()
			require.Len(t, pub.ids(), i+1)
		}
		require.NoError(t, stop())
	})
}

func TestWithoutAWakeUpPollingFindsMessagesWithinASecond(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := outboxtest.NewMemory()
		reads := 0
		store.Intercept(func(op string) error {
			if op == "Topics" {
				reads++
			}
			return nil
		})
		pub := &broker{}
		_, _, stop := start(t, store, pub, Config{})
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Less(t, reads, 80, "a quiet outbox is polled once a second")
		fill(store, 1, 1)
		until(t, time.Second+10*time.Millisecond, "sent", func() bool { return len(pub.ids()) == 1 })
		require.NoError(t, stop())
	})
}

func TestMessagesOfOneKeyAreNeverUnresolvedTogether(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := outboxtest.NewMemory()
		fill(store, 500, 3)
		pub := &broker{latency: time.Millisecond}
		_, _, stop := start(t, store, pub, Config{})
		until(t, time.Minute, "all sent", func() bool { return len(store.Waiting()) == 0 })
		require.NoError(t, stop())
		for _, n := range pub.batches {
			require.LessOrEqual(t, n, 3)
		}
	})
}

func TestMessagesWithoutAKeyArePipelined(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := outboxtest.NewMemory()
		for i := range 2000 {
			store.Insert(outboxtest.Entry{ID: fmt.Sprint(i), Topic: "t", Lane: i % 64})
		}
		pub := &broker{latency: 100 * time.Millisecond}
		_, _, stop := start(t, store, pub, Config{})
		until(t, 300*time.Millisecond, "all sent", func() bool { return len(pub.ids()) == 2000 })
		require.Equal(t, 4, pub.mostOut)
		require.NoError(t, stop())
	})
}

func TestALateCommitWithALowerPositionIsFound(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := outboxtest.NewMemory()
		pub := &broker{}
		_, _, stop := start(t, store, pub, Config{})
		early := store.Draw()
		fill(store, 100, 10)
		until(t, 2*time.Second, "later ones sent", func() bool { return len(pub.ids()) == 100 })
		store.InsertAt(early, outboxtest.Entry{ID: "late", Topic: "t", Key: "late"})
		until(t, 2*time.Second, "late one sent", func() bool { return len(pub.ids()) == 101 })
		require.NoError(t, stop())
	})
}

func TestPublishedMessagesCarryIdPayloadAndOrigin(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := outboxtest.NewMemory()
		store.Insert(outboxtest.Entry{ID: "a", Topic: "t", Key: "k", Body: []byte("body"), Meta: map[string]string{"x": "y"}})
		var got *message.Message
		pub := &broker{answer: func(m *message.Message) error { got = m.Copy(); return nil }}
		_, _, stop := start(t, store, pub, Config{})
		until(t, 2*time.Second, "sent", func() bool { return len(pub.ids()) == 1 })
		require.Equal(t, "a", got.UUID)
		require.Equal(t, "body", string(got.Payload))
		require.Equal(t, message.Metadata{"x": "y", "millrace_place": fmt.Sprint(outbox.Lane("k"), ".1.1.1")}, got.Metadata)
		require.NoError(t, stop())
	})
}

func TestMemoryIsBoundedByTheReadAhead(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := outboxtest.NewMemory()
		for i := range 300 {
			store.Insert(outboxtest.Entry{ID: fmt.Sprint(i), Topic: "t", Lane: i % 64, Body: make([]byte, 1000)})
		}
		pub := &broker{answer: func(*message.Message) error { return errDown }}
		f, _, stop := start(t, store, pub, Config{BatchBytes: 10_000, ReadAheadBytes: 50_000})
		time.Sleep(10 * time.Second)
		synctest.Wait()
		require.LessOrEqual(t, f.Stats().Read, 50)
		require.NotZero(t, f.Stats().Read)
		pub.set(nil)
		until(t, time.Minute, "all sent", func() bool { return len(store.Waiting()) == 0 })
		for _, n := range pub.batches {
			require.LessOrEqual(t, n, 10)
		}
		require.NoError(t, stop())
	})
}
