package outbox

import (
	"context"
	"maps"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace/internal/meta"
)

// metaCaptured is in the metadata of a message that has what its context knew. It is not sent.
const metaCaptured = meta.Prefix + "captured"

// Capture checks a message as Publish does, and stores nothing: for what keeps a message for a while before it
// publishes it. It returns a copy with what Config.Propagators know of ctx; they are not asked again when that is
// published, by whomever and whenever that is.
func (b *Box) Capture(ctx context.Context, topic string, msg *message.Message) (*message.Message, error) {
	if msg == nil {
		_, err := b.encode(ctx, topic, nil)
		return nil, err
	}
	captured := message.NewMessage(msg.UUID, msg.Payload)
	maps.Copy(captured.Metadata, msg.Metadata)
	if len(b.encoder.propagators) > 0 && captured.Metadata[metaCaptured] == "" {
		for _, p := range b.encoder.propagators {
			p.Inject(ctx, captured.Metadata)
		}
		captured.Metadata[metaCaptured] = "yes"
	}
	_, err := b.encode(ctx, topic, captured)
	return captured, err
}
