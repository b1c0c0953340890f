package rabbitmq

import (
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill-amqp/v3/pkg/amqp"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/internal/testenv"
)

// amqp091 waits 5 s for a return to be taken, throws it away, and delivers the confirm.
func TestAReturnThatNobodyTookForSixSecondsStillRefusesItsMessage(t *testing.T) {
	t.Parallel()
	config, err := Config{
		URL: testenv.RabbitMQ(t), SkipTopology: true, AMQP: amqp.NewDurableQueueConfig(""),
	}.withDefaults()
	require.NoError(t, err)
	c := newConnector(config, "test")
	t.Cleanup(c.close)
	conn, err := c.get(t.Context())
	require.NoError(t, err)
	ch, err := conn.confirmChannel(t.Context())
	require.NoError(t, err)

	o := &outgoing{}
	require.NoError(t, config.prepare(o, "no-such-queue", message.NewMessage("id", nil)))
	ch.numbers = []any{"0"}
	f := newFlight(ch, []*outgoing{o})
	f.write()
	<-time.After(6 * time.Second) // the goroutine that evaluates confirms is busy with something else
	<-f.confirms[0].Done()
	require.True(t, f.answer())
	var r *refusal
	require.ErrorAs(t, o.err, &r)
	require.Equal(t, reasonNoRoute, r.reason)
}
