package forwarder

import (
	"context"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/internal/meta"
)

// handing is a publisher that hands its messages to somebody in this process and waits until they are
// acknowledged.
type handing struct{ to chan *message.Message }

func (h handing) Publish(_ string, msgs ...*message.Message) error {
	for _, msg := range msgs {
		acked := msg.Acked()
		h.to <- msg
		<-acked
	}
	return nil
}

func (handing) Close() error { return nil }

func TestAPlainPublisherMayWaitUntilItsMessageIsAcknowledged(t *testing.T) {
	t.Parallel()
	h, seen := handing{make(chan *message.Message)}, ""
	go func() {
		for msg := range h.to {
			seen = msg.Context().Value(handing{}).(string)
			msg.Metadata["name"] = "changed"
			msg.Ack()
		}
	}()
	defer close(h.to)
	it := &item{lane: &lane{}}
	it.row.ID, it.row.Topic, it.row.Payload, it.row.Metadata = "id", "orders", []byte("payload"), message.Metadata{"name": "value"}
	topics, msgs := outgoing([]*item{it}, false)
	msgs[0].SetContext(context.WithValue(t.Context(), handing{}, "by the handler"))
	require.Equal(t, []error{nil}, newPlain(h).PublishBatch(t.Context(), topics, msgs))
	require.Equal(t, "by the handler", seen)
	require.Equal(t, "value", it.row.Metadata["name"], "a further attempt is made of the same metadata")
}

func TestAFurtherAttemptLeavesAloneWhatThePublisherOfTheFirstMayBeReading(t *testing.T) {
	t.Parallel()
	for _, observed := range []bool{false, true} {
		it := &item{lane: &lane{}, attempt: 1}
		it.row.Metadata = message.Metadata{"name": "value"}
		attempt := func() message.Metadata {
			_, msgs := outgoing([]*item{it}, observed)
			return msgs[0].Metadata
		}
		first := attempt()
		require.Equal(t, message.Metadata{"name": "value", meta.Place: "0.0.0.1"}, first)
		it.attempt = 2
		require.Equal(t, message.Metadata{"name": "value", meta.Place: "0.0.0.2"}, attempt())
		require.Equal(t, "0.0.0.1", first[meta.Place])
		if observed {
			require.Equal(t, message.Metadata{"name": "value"}, it.row.Metadata, "an observer may change what it is given")
		}
	}
}
