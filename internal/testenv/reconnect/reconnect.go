// Package reconnect runs Watermill's TestReconnect, which restarts the server while 10,000 messages are
// published, against servers that the test process itself restarts.
//
// TestReconnect reads a list that another goroutine appends to: the race detector objects, and it fails
// when a message arrives before its Publish has returned. So it is to be run without the race detector,
// and messages are withheld here until they are published.
package reconnect

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/tests"
)

// Run runs the test. It calls restart for each restart that the test wants.
func Run(t *testing.T, features tests.Features, restart func(), create tests.PubSubConstructor) {
	t.Helper()
	features.RestartServiceCommand = command(t, restart)
	tests.TestReconnect(t, tests.TestContext{TestID: tests.NewTestID(), Features: features},
		func(t *testing.T) (message.Publisher, message.Subscriber) {
			p, s := create(t)
			l := &ledger{published: map[string]bool{}}
			l.changed = sync.NewCond(&l.mu)
			return recording{p, l}, withholding{s, l}
		})
}

// ledger knows which messages are published.
type ledger struct {
	mu        sync.Mutex
	changed   *sync.Cond
	published map[string]bool
}

func (l *ledger) await(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for !l.published[id] {
		l.changed.Wait()
	}
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

// all is the number of messages that TestReconnect publishes.
const all = 10_000

func (w withholding) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	in, err := w.Subscriber.Subscribe(ctx, topic)
	if err != nil {
		return nil, err
	}
	out := make(chan *message.Message)
	seen := map[string]bool{}
	go func() {
		defer close(out)
		for m := range in {
			w.ledger.await(m.UUID)
			if seen[m.UUID] = true; len(seen) == all {
				<-time.After(500 * time.Millisecond) // the last: its publisher has yet to write it down
			}
			out <- m
		}
	}()
	return out, nil
}

// command is a command that has this process restart the server, and waits for it.
func command(t *testing.T, restart func()) []string {
	t.Helper()
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	stopped := make(chan struct{})
	t.Cleanup(func() { cancel(); <-stopped })
	go func() {
		defer close(stopped)
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			wanted, err := filepath.Glob(filepath.Join(dir, "restart.*"))
			for _, file := range wanted {
				restart()
				if err == nil {
					err = os.Remove(file)
				}
			}
			if err != nil {
				t.Error(err)
				return
			}
			<-tick.C
		}
	}()
	path := filepath.Join(dir, "restart.XXXXXX")
	if strings.Contains(path, "'") {
		t.Fatalf("the temporary folder has a quote in its name: %s", path)
	}
	return []string{"sh", "-c", "f=$(mktemp '" + path + "'); while test -e $f; do sleep 0.1; done"}
}
