//go:build !race

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

// The suite's TestReconnect has a data race of its own: it appends to a list in one goroutine and reads it
// in another. So it runs without the race detector only; TestARestartOfRedisLosesNothing has the same
// scenario and runs always.
func TestWatermillsReconnectTestPasses(t *testing.T) {
	server := testenv.OwnRedis(t)
	tests.TestReconnect(t,
		tests.TestContext{TestID: tests.NewTestID(), Features: tests.Features{
			ConsumerGroups: true, Persistent: true, RestartServiceCommand: restarter(t, server),
		}},
		func(t *testing.T) (message.Publisher, message.Subscriber) { return pubSub(t, server.URL, "group") })
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
