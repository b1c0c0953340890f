package forwarder_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/forwarder"
	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/outbox"
	"github.com/millrace-go/millrace/pgxtx"
)

// arrivals is a publisher that hands over the ids.
type arrivals chan string

func (a arrivals) Publish(_ string, msgs ...*message.Message) error {
	for _, msg := range msgs {
		a <- msg.UUID
	}
	return nil
}

func (arrivals) Close() error { return nil }

// The next commit comes at all distances from the last arrival: while the forwarder settles, cools down, asks
// for topics, or has nothing to do, and while the last note cools down at its sender. Were one of the wake-ups
// lost, its message would wait for a poll, and there is none.
func TestNoWakeUpByAnotherProcessIsLostWhateverTheForwarderDoes(t *testing.T) {
	t.Parallel()
	n := 300
	if testenv.Full() {
		n = 5000
	}
	s := newStage(t, postgres)
	connected := func() *outbox.Box {
		w, err := pgxtx.NewWaker(s.dsn, pgxtx.WakerConfig{})
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, w.Close(context.WithoutCancel(t.Context()))) })
		box, err := outbox.New(s.db, outbox.Config{Waker: w})
		require.NoError(t, err)
		return box
	}
	here, there := connected(), connected()
	s.box = there
	sent := make(arrivals, n)
	f, stop := s.run(sent, forwarder.Config{PollInterval: time.Hour, MaxPollInterval: time.Hour})
	testenv.Eventually(t, time.Minute, "all lanes held", func() bool { return f.Stats().Lanes == outbox.Lanes })
	for i := range n {
		id := fmt.Sprint("message-", i)
		require.NoError(t, millrace.InTx(t.Context(), s.db, func(ctx context.Context, _ *millrace.Tx) error {
			return here.Publish(ctx, "orders", message.NewMessage(id, nil))
		}))
		select {
		case got := <-sent:
			require.Equal(t, id, got)
		case <-time.After(2 * time.Minute):
			t.Fatalf("%s waits for a poll", id)
		}
		for until := time.Now().Add(time.Duration(i*37%12_000) * time.Microsecond); time.Now().Before(until); {
			f.Stats() // a distance, not a wait for anything
		}
	}
	require.NoError(t, stop())
}
