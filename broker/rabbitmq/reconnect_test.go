//go:build !race

package rabbitmq_test

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/tests"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/broker/rabbitmq"
	"github.com/millrace-go/millrace/internal/testenv"
)

// Watermill's TestReconnect reads a list that another goroutine appends to: the race detector objects, and
// it fails when a message arrives before its Publish has returned. So it does not run under the race
// detector, where the tests of faults have its scenario, and messages are withheld until they are
// published.

// ledger knows which messages are published.
type ledger struct {
	mu        sync.Mutex
	changed   *sync.Cond
	published map[string]bool
}

type recording struct {
	message.Publisher
	ledger *ledger
}

func (r recording) Publish(topic string, msgs ...*message.Message) error {
	err := r.Publisher.Publish(topic, msgs...)
	if err == nil {
		r.ledger.mu.Lock()
		defer r.ledger.mu.Unlock()
		for _, m := range msgs {
			r.ledger.published[m.UUID] = true
		}
		r.ledger.changed.Broadcast()
	}
	return err
}

type withholding struct {
	message.Subscriber
	ledger *ledger
}

func (w withholding) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	in, err := w.Subscriber.Subscribe(ctx, topic)
	out := make(chan *message.Message)
	seen := map[string]bool{}
	go func() {
		defer close(out)
		for m := range in {
			w.ledger.mu.Lock()
			for !w.ledger.published[m.UUID] {
				w.ledger.changed.Wait()
			}
			w.ledger.mu.Unlock()
			if seen[m.UUID] = true; len(seen) == 10_000 {
				<-time.After(500 * time.Millisecond) // the last: its publisher has yet to write it down
			}
			out <- m
		}
	}()
	return out, err
}

func (w withholding) SubscribeInitialize(topic string) error {
	return w.Subscriber.(message.SubscribeInitializer).SubscribeInitialize(topic)
}

func TestWatermillsReconnectTestPasses(t *testing.T) {
	server := testenv.OwnRabbitMQ(t)
	create := func(t *testing.T, group string) (message.Publisher, message.Subscriber) {
		p, s := pubSub(rabbitmq.Config{URL: server.URL})(t, group)
		l := &ledger{published: map[string]bool{}}
		l.changed = sync.NewCond(&l.mu)
		return recording{p, l}, withholding{s, l}
	}
	tests.TestReconnect(t, tests.TestContext{
		TestID:   tests.NewTestID(),
		Features: tests.Features{Persistent: true, RestartServiceCommand: restartCommand(t, server.Restart)},
	}, inGroup(create, "group"))
}

// restartCommand is a command that has this process restart the server, and waits for it.
func restartCommand(t *testing.T, restart func()) []string {
	t.Helper()
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(context.Background())
	stopped := make(chan struct{})
	t.Cleanup(func() { cancel(); <-stopped })
	go func() {
		defer close(stopped)
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			wanted, err := filepath.Glob(filepath.Join(dir, "restart.*"))
			if err != nil {
				t.Error(err)
				return
			}
			for _, file := range wanted {
				restart()
				if err := os.Remove(file); err != nil {
					t.Error(err)
					return
				}
			}
			<-tick.C
		}
	}()
	path := filepath.Join(dir, "restart.XXXXXX")
	require.NotContains(t, path, "'")
	return []string{"sh", "-c", "f=$(mktemp '" + path + "'); while test -e $f; do sleep 0.1; done"}
}
