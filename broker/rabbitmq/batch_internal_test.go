package rabbitmq

import (
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/ThreeDotsLabs/watermill-amqp/v3/pkg/amqp"
	"github.com/ThreeDotsLabs/watermill/message"
	amqp091 "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"
)

func withMetadata(id string, pairs ...string) *message.Message {
	msg := message.NewMessage(id, message.Payload("payload of "+id))
	for i := 0; i < len(pairs); i += 2 {
		msg.Metadata[pairs[i]] = pairs[i+1]
	}
	return msg
}

func TestMemoryThatIsUsedAgainLeavesNothingOfTheLastMessageInTheNext(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 2*keptHeaders)
	msgs := []*message.Message{
		withMetadata("1", "a", "1", "b", "2"),
		withMetadata("2", "a", "1", "c", "3"),
		withMetadata("3"),
		withMetadata("4", amqp.DefaultMessageUUIDHeaderKey, "somebody's", "a", "1"),
		withMetadata("5", "b", "2"),
		withMetadata("6", returnHeader, "7", "a", "1", "b", "2"),
		withMetadata("7", "b", "3"),
		withMetadata("8", returnHeader, "7", amqp.DefaultMessageUUIDHeaderKey, "somebody's"),
		withMetadata("9", "a", "1", "b", "2", "c", long),
		withMetadata("", "a", "", "", "2"),
	}
	for name, marshaler := range map[string]amqp.Marshaler{
		"ours": nil, "watermill-amqp's": amqp.DefaultMarshaler{}, "another": another{}, "that with a hook": amqp.DefaultMarshaler{
			PostprocessPublishing: func(p amqp091.Publishing) amqp091.Publishing { p.CorrelationId = "c"; return p },
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			config, err := Config{URL: "amqp://localhost", AMQP: amqp.Config{Marshaler: marshaler}}.withDefaults()
			require.NoError(t, err)
			b := &batch{messages: make([]outgoing, 1)}
			var memory batchPool
			for range 3 {
				for _, msg := range msgs {
					var fresh outgoing
					require.NoError(t, config.prepare(&fresh, "topic", msg))
					require.NoError(t, config.prepare(&b.messages[0], "topic", msg))
					require.Equal(t, fresh, b.messages[0])
					b.messages[0].publishing.Headers[returnHeader] = "17" // as the writer does
					b.messages[0].answer(nil)
					memory.put(b)
				}
			}
		})
	}
}

// another is a marshaler with headers of its own.
type another struct{ amqp.DefaultMarshaler }

func (a another) Marshal(msg *message.Message) (amqp091.Publishing, error) {
	p, err := a.DefaultMarshaler.Marshal(msg)
	p.Headers["number"] = int64(len(msg.UUID))
	return p, err
}

func TestWatermillsMarshalerIsDoneWithoutAndWritesTheSame(t *testing.T) {
	t.Parallel()
	config, err := Config{URL: "amqp://localhost", AMQP: amqp.Config{Marshaler: amqp.DefaultMarshaler{}}}.withDefaults()
	require.NoError(t, err)
	for i, msg := range []*message.Message{
		withMetadata("1", "a", "1", "b", "2"), withMetadata(""), withMetadata(strings.Repeat("i", 300)),
		withMetadata("2", amqp.DefaultMessageUUIDHeaderKey, "another"),
	} {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			want, err := amqp.DefaultMarshaler{}.Marshal(msg)
			require.NoError(t, err)
			got, err := config.marshal(msg, amqp091.Table{"of": "another message"})
			require.NoError(t, err)
			require.Equal(t, want, got)
		})
	}
}

func TestHeadersOfAnotherMarshalerAreNotTouched(t *testing.T) {
	t.Parallel()
	shared := amqp091.Table{"of": "all messages"}
	before := maps.Clone(shared)
	config, err := Config{URL: "amqp://localhost", AMQP: amqp.Config{Marshaler: sharing{shared: shared}}}.withDefaults()
	require.NoError(t, err)
	var o outgoing
	require.NoError(t, config.prepare(&o, "topic", withMetadata("1")))
	require.Equal(t, before, shared)
	require.Equal(t, longestNumber, o.publishing.Headers[returnHeader])
}

// sharing is a marshaler all of whose messages have the same table.
type sharing struct {
	amqp.DefaultMarshaler
	shared amqp091.Table
}

func (s sharing) Marshal(msg *message.Message) (amqp091.Publishing, error) {
	return amqp091.Publishing{Headers: s.shared, Body: msg.Payload}, nil
}
