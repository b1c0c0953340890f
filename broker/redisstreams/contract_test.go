package redisstreams_test

import (
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/broker/brokertest"
	"github.com/millrace-go/millrace/internal/testenv"
)

func TestTheContractHolds(t *testing.T) {
	url := testenv.Redis(t)
	brokertest.Run(t, brokertest.Broker{
		NewPublisher: func(t *testing.T) brokertest.BatchPublisher {
			cfg := quick(url)
			cfg.MaxMessageBytes = 100_000
			return publisher(t, cfg)
		},
		MaxPayload: 100_000,
		NewSubscriber: func(t *testing.T, settings brokertest.Settings) message.Subscriber {
			cfg := quick(url)
			cfg.ConsumerGroup = settings.Group
			cfg.Concurrency = settings.Concurrency
			cfg.CloseTimeout = max(settings.CloseTimeout, time.Second)
			return subscriber(t, cfg)
		},
		Unreachable: func(t *testing.T) brokertest.BatchPublisher {
			return publisher(t, quick("redis://127.0.0.1:1/0"))
		},
		WriteMalformed: func(t *testing.T, topic string) int { return writeMalformed(t, url, topic) },
	})
}

// writeMalformed adds entries that the marshaler of watermill-redisstream does not take.
func writeMalformed(t testing.TB, url, topic string) int {
	c := client(t, url)
	entries := [][]any{
		{"hello", "world"},
		{"_watermill_message_uuid", "u1", "metadata", "\xc1not msgpack", "payload", "x"},
		{"_watermill_message_uuid", "", "payload", "no id"},
		{"_watermill_message_uuid", "u2", "metadata", "\x81\xa1k\x05", "payload", "a number for a value"},
		{"", ""},
	}
	for _, values := range entries {
		require.NoError(t, c.XAdd(t.Context(), &redis.XAddArgs{Stream: topic, Values: values}).Err())
	}
	return len(entries)
}
