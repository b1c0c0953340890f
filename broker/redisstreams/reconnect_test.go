//go:build !race

package redisstreams_test

import (
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/tests"

	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/internal/testenv/reconnect"
)

// The suite's TestReconnect runs without the race detector only; TestARestartOfRedisLosesNothing has the
// same scenario and runs always.
func TestWatermillsReconnectTestPasses(t *testing.T) {
	server := testenv.OwnRedis(t)
	reconnect.Run(t, tests.Features{ConsumerGroups: true, Persistent: true}, server.Restart,
		func(t *testing.T) (message.Publisher, message.Subscriber) { return pubSub(t, server.URL, "group") })
}
