//go:build !race

package rabbitmq_test

import (
	"testing"

	"github.com/ThreeDotsLabs/watermill/pubsub/tests"

	"github.com/millrace-go/millrace/broker/rabbitmq"
	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/internal/testenv/reconnect"
)

// The suite's TestReconnect runs without the race detector only; TestKillsOfTheBrokerUnderLoadLoseNothing
// and its like have the scenario and run always.
func TestWatermillsReconnectTestPasses(t *testing.T) {
	server := testenv.OwnRabbitMQ(t)
	reconnect.Run(t, tests.Features{Persistent: true}, server.Restart,
		inGroup(pubSub(rabbitmq.Config{URL: server.URL}), "group"))
}
