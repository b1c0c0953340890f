package forwarder_test

import (
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/forwarder"
	"github.com/millrace-go/millrace/outbox"
)

type nowhere struct{}

func (nowhere) Store() outbox.Store               { return nil }
func (nowhere) Subscribe() (*outbox.Wake, func()) { return nil, func() {} }

type discard struct{}

func (discard) Publish(string, ...*message.Message) error { return nil }
func (discard) Close() error                              { return nil }

func TestTheZeroConfigIsAccepted(t *testing.T) {
	t.Parallel()
	_, err := forwarder.New(nowhere{}, discard{}, forwarder.Config{})
	require.NoError(t, err)
}

func TestNewReportsEverythingThatIsWrongAtOnce(t *testing.T) {
	t.Parallel()
	_, err := forwarder.New(nil, nil, forwarder.Config{
		Lease: time.Millisecond, PollInterval: -1, BatchRows: -1, BatchBytes: -1, Batches: -1, ReadAheadRows: -1, ReadAheadBytes: -1,
		PublishTimeout: -1, MaxAttempts: -1, RetryBase: time.Hour, RetryMax: time.Second, OnFailure: 7, DrainTimeout: time.Minute,
		ID: string(make([]byte, 100)),
	})
	for _, want := range []string{"outbox is nil", "publisher is nil", "Lease is 1ms, at least 100ms", "PollInterval", "BatchRows", "BatchBytes",
		"Batches", "ReadAheadRows", "ReadAheadBytes", "PublishTimeout", "MaxAttempts", "RetryMax", "OnFailure", "DrainTimeout", "ID has 100"} {
		require.ErrorContains(t, err, want)
	}
}
