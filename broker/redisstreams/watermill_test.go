package redisstreams_test

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/tests"

	"github.com/millrace-go/millrace/internal/testenv"
)

// Watermill's suite. Of what it can test we do not claim: exactly-once delivery (nobody can), order over
// several members of a group (GuaranteedOrderWithSingleSubscriber says so), and that a new
// subscriber of a group gets messages that the group has handled (without a group it does, and is tested).

func TestWatermillsSuite(t *testing.T) {
	server := testenv.OwnRedis(t)
	tests.TestPubSub(t, tests.Features{
		ConsumerGroups:        true,
		Persistent:            true,
		RestartServiceCommand: restarter(t, server),
		// The counts of the suite are for an idle machine with many cores; Full runs them.
		ForceShort: !testenv.Full(),
	},
		func(t *testing.T) (message.Publisher, message.Subscriber) { return pubSub(t, server.URL, "group") },
		func(t *testing.T, group string) (message.Publisher, message.Subscriber) {
			return pubSub(t, server.URL, group)
		},
	)
}

func pubSub(t *testing.T, url, group string) (message.Publisher, message.Subscriber) {
	cfg := quick(url)
	cfg.ConsumerGroup = group
	cfg.NackDelay = 5 * time.Millisecond
	return publisher(t, cfg), subscriber(t, cfg)
}

func TestWatermillsSuiteOfOrder(t *testing.T) {
	url := testenv.Redis(t)
	strict := func(t *testing.T) (message.Publisher, message.Subscriber) {
		cfg := quick(url)
		cfg.ConsumerGroup = "group"
		cfg.Concurrency = 1
		return publisher(t, cfg), subscriber(t, cfg)
	}
	about := func() tests.TestContext {
		return tests.TestContext{TestID: tests.NewTestID(), Features: tests.Features{
			ConsumerGroups: true, Persistent: true, GuaranteedOrder: true, GuaranteedOrderWithSingleSubscriber: true,
		}}
	}
	t.Run("TestPublishSubscribeInOrder", func(t *testing.T) { tests.TestPublishSubscribeInOrder(t, about(), strict) })
	t.Run("TestNoAck", func(t *testing.T) { tests.TestNoAck(t, about(), strict) })
}

func TestWatermillsSuiteWithoutAGroup(t *testing.T) {
	url := testenv.Redis(t)
	tests.TestNewSubscriberReceivesOldMessages(t,
		tests.TestContext{TestID: tests.NewTestID(), Features: tests.Features{
			Persistent: true, NewSubscriberReceivesOldMessages: true,
		}},
		func(t *testing.T) (message.Publisher, message.Subscriber) {
			cfg := quick(url)
			cfg.StartID = "0"
			return publisher(t, cfg), subscriber(t, cfg)
		})
}

// restarter returns a command that asks this process to restart the server, and waits for it: the suite
// takes nothing but a command.
func restarter(t *testing.T, server *testenv.Server) []string {
	dir := t.TempDir()
	ask, done := filepath.Join(dir, "ask"), filepath.Join(dir, "done")
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
			if os.Remove(ask) != nil {
				continue
			}
			server.Restart()
			_ = os.WriteFile(done, nil, 0o600)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	script := `touch "$1"; for i in $(seq 300); do rm "$2" 2>/dev/null && exit 0; sleep 0.1; done; exit 1`
	return []string{"sh", "-c", script, "restart", ask, done}
}
