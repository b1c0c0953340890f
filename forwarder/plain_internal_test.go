package forwarder

import (
	"context"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"
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
	h := handing{make(chan *message.Message)}
	go func() {
		for msg := range h.to {
			msg.Metadata["seen"] = msg.Context().Value(handing{}).(string)
			msg.Ack()
		}
	}()
	defer close(h.to)
	it := &item{lane: &lane{}}
	it.row.ID, it.row.Topic, it.row.Payload = "id", "orders", []byte("payload")
	topics, msgs := outgoing([]*item{it})
	msgs[0].SetContext(context.WithValue(t.Context(), handing{}, "by the handler"))
	require.Equal(t, []error{nil}, newPlain(h).PublishBatch(t.Context(), topics, msgs))
	require.Equal(t, "by the handler", msgs[0].Metadata["seen"])
}
