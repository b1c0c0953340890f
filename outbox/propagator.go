package outbox

import (
	"context"
	"errors"

	"github.com/ThreeDotsLabs/watermill/message"
)

// Propagator carries what a context knows into the metadata of messages at Publish, so that it crosses
// the outbox with them: a trace, a tenant, the user who caused it.
//
// Publish calls Inject for each message, in the caller's goroutine, with the context that it was given
// (for a Publisher, the message's), and a copy of the message's metadata that Inject may add to. What it
// adds is checked and bounded as all metadata. It must be safe for concurrent use, must not keep the
// metadata, and should be quick: it runs inside the transaction.
type Propagator interface {
	Inject(ctx context.Context, metadata message.Metadata)
}

// PropagatorFunc is a function as a Propagator.
type PropagatorFunc func(ctx context.Context, metadata message.Metadata)

// Inject implements Propagator.
func (f PropagatorFunc) Inject(ctx context.Context, metadata message.Metadata) { f(ctx, metadata) }

// ContextValue is a Propagator of one value that the application keeps in its contexts. Value returns it,
// or "" for none. Metadata that the message has under that name already stays.
func ContextValue(name string, value func(ctx context.Context) string) Propagator {
	return PropagatorFunc(func(ctx context.Context, metadata message.Metadata) {
		if _, there := metadata[name]; there {
			return
		}
		if v := value(ctx); v != "" {
			metadata[name] = v
		}
	})
}

func checkPropagators(all []Propagator) error {
	for _, p := range all {
		if p == nil {
			return errors.New("outbox: Config.Propagators holds nil")
		}
	}
	return nil
}
