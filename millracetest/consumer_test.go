package millracetest_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/dedup"
	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/middleware"
	"github.com/millrace-go/millrace/millracetest"
)

// journal notes what a handler got.
type journal struct {
	mu  sync.Mutex
	got []string
}

func (j *journal) add(s string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.got = append(j.got, s)
}

func (j *journal) all() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return append([]string(nil), j.got...)
}

// consume runs a handler on the broker until the test ends.
func consume(t testing.TB, b *millracetest.Broker, h message.NoPublishHandlerFunc, ms ...message.HandlerMiddleware) {
	t.Helper()
	r, err := message.NewRouter(message.RouterConfig{CloseTimeout: 30 * time.Second}, watermill.NopLogger{})
	require.NoError(t, err)
	r.AddMiddleware(ms...)
	r.AddConsumerHandler("billing", "orders", b.Subscriber("billing"), h)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	<-r.Running()
	t.Cleanup(func() { cancel(); require.NoError(t, <-ended) })
}

func settle(t testing.TB, b *millracetest.Broker) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	require.NoError(t, b.Settle(ctx))
}

func publish(t testing.TB, b *millracetest.Broker, n int, key string) {
	t.Helper()
	for i := range n {
		m := message.NewMessage(fmt.Sprint(i), []byte(fmt.Sprint(i)))
		if key != "" {
			m.Metadata.Set("millrace_key", key)
		}
		require.NoError(t, b.Publish("orders", m))
	}
}

func TestABrokerDoesWhatItsFaultsSay(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		faults millracetest.Faults
		want   int // deliveries of 20 messages
	}{
		"none":          {want: 20},
		"copies":        {faults: millracetest.Faults{Copies: 2}, want: 60},
		"lost acks":     {faults: millracetest.Faults{LostAcks: 7}, want: 27},
		"reordered":     {faults: millracetest.Faults{Reorder: true, Seed: 7}, want: 20},
		"all of a kind": {faults: millracetest.Faults{Copies: 1, LostAcks: 3, Reorder: true}, want: 43},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := millracetest.NewBroker(tc.faults)
			publish(t, b, 20, "k")
			var j journal
			consume(t, b, func(m *message.Message) error { j.add(m.UUID); return nil })
			settle(t, b)
			require.Len(t, j.all(), tc.want)
			inOrder := []string(nil)
			for i := range 20 {
				inOrder = append(inOrder, fmt.Sprint(i))
			}
			if tc.want == 20 && !tc.faults.Reorder {
				require.Equal(t, inOrder, j.all())
			} else if tc.faults.Reorder {
				require.NotEqual(t, inOrder, j.all()[:20])
			}
		})
	}
}

func TestANackedMessageComesAgainBeforeTheOthersOfItsKey(t *testing.T) {
	t.Parallel()
	b := millracetest.NewBroker(millracetest.Faults{})
	publish(t, b, 3, "k")
	var j journal
	failed := false
	consume(t, b, func(m *message.Message) error {
		j.add(m.UUID)
		if m.UUID == "1" && !failed {
			failed = true
			return errors.New("once")
		}
		return nil
	})
	settle(t, b)
	require.Equal(t, []string{"0", "1", "1", "2"}, j.all())
}

func TestAMessageThatIsNotAcknowledgedInTimeComesTwiceAtOnce(t *testing.T) {
	t.Parallel()
	b := millracetest.NewBroker(millracetest.Faults{AckDeadline: 20 * time.Millisecond})
	publish(t, b, 1, "k")
	both := make(chan struct{}, 2)
	release := make(chan struct{})
	consume(t, b, func(*message.Message) error {
		both <- struct{}{}
		<-release
		return nil
	})
	<-both
	<-both
	close(release)
	settle(t, b)
}

func TestSettleGivesUpWhenItsContextEnds(t *testing.T) {
	t.Parallel()
	b := millracetest.NewBroker(millracetest.Faults{})
	publish(t, b, 1, "")
	require.NoError(t, b.Subscriber("billing").(message.SubscribeInitializer).SubscribeInitialize("orders"))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, b.Settle(ctx), context.DeadlineExceeded)
	require.NoError(t, b.Close())
	require.ErrorIs(t, b.Publish("orders", message.NewMessage("x", nil)), millracetest.ErrClosed)
}

func TestASubscriberClosesThoughNobodyReadsFromIt(t *testing.T) {
	t.Parallel()
	b := millracetest.NewBroker(millracetest.Faults{})
	publish(t, b, 1, "")
	first := b.Subscriber("billing")
	_, err := first.Subscribe(context.Background(), "orders")
	require.NoError(t, err)
	closed := make(chan error, 1)
	go func() { closed <- first.Close() }()
	select {
	case err := <-closed:
		require.NoError(t, err)
	case <-time.After(30 * time.Second):
		t.Fatal("Close hangs")
	}
	var j journal
	consume(t, b, func(m *message.Message) error { j.add(m.UUID); return nil })
	settle(t, b)
	require.Equal(t, []string{"0"}, j.all(), "what it had in hand comes to another")
}

func TestAnIdempotentConsumerStandsAllOfIt(t *testing.T) {
	t.Parallel()
	b := millracetest.NewBroker(millracetest.Faults{Copies: 2, LostAcks: 10, Reorder: true, AckDeadline: 50 * time.Millisecond})
	store := millracetest.Away(new(dedup.Memory))
	chain, err := middleware.Recommended(middleware.Config{Dedup: store, Idempotent: middleware.IdempotentConfig{BusyWait: 50 * time.Millisecond}})
	require.NoError(t, err)
	var j journal
	store.Set(true)
	consume(t, b, func(m *message.Message) error { j.add(m.UUID); return nil }, chain...)
	publish(t, b, 50, "")
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	require.Error(t, b.Settle(ctx))
	require.Empty(t, j.all(), "without the store nothing runs")
	store.Set(false)
	settle(t, b)
	require.Len(t, j.all(), 50)
}

func TestARecorderTellsWhatWasCommitted(t *testing.T) {
	t.Parallel()
	sqlDB, err := sql.Open("sqlite", "file:"+testenv.SQLite(t)+"?_pragma=journal_mode(WAL)")
	require.NoError(t, err)
	t.Cleanup(func() { _ = sqlDB.Close() })
	db := millrace.SQL(sqlDB)
	rec := millracetest.Record(db, nil)
	place := func(ctx context.Context, payload string, end error) error {
		return millrace.InTx(ctx, db, func(ctx context.Context, _ *millrace.Tx) error {
			m := message.NewMessageWithContext(ctx, payload, []byte(payload))
			return errors.Join(rec.Publish("orders", m), end)
		})
	}
	require.NoError(t, place(t.Context(), "a", nil))
	require.ErrorIs(t, place(t.Context(), "b", errBusiness), errBusiness)
	rec.Expect(t, "orders", "a")
	require.Len(t, rec.All("orders"), 2)

	millracetest.RolledBack(t, db, func(ctx context.Context, _ *millrace.Tx) {
		got, err := millracetest.Capture(ctx, db, func(ctx context.Context) error { return place(ctx, "c", nil) })
		require.NoError(t, err)
		rec.Expect(t, "orders", "a")
		require.Empty(t, got.Run())
		rec.Expect(t, "orders", "a", "c")
	})

	refused := &testing.T{}
	rec.Expect(refused, "orders", "a")
	require.True(t, refused.Failed())
}

func ExampleBroker() {
	broker := millracetest.NewBroker(millracetest.Faults{Copies: 1, LostAcks: 2, Reorder: true})
	router, err := message.NewRouter(message.RouterConfig{}, watermill.NopLogger{})
	if err != nil {
		panic(err)
	}
	chain, err := middleware.Recommended(middleware.Config{Dedup: new(dedup.Memory)})
	if err != nil {
		panic(err)
	}
	router.AddMiddleware(chain...)
	handled := 0
	router.AddConsumerHandler("billing", "orders", broker.Subscriber("billing"), func(*message.Message) error {
		handled++
		return nil
	})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- router.Run(ctx) }()

	_ = broker.Publish("orders", message.NewMessage("order-1", nil))
	err = broker.Settle(ctx)
	fmt.Println(err, handled)
	cancel()
	fmt.Println(<-ended)
	// Output:
	// <nil> 1
	// <nil>
}
