package txn

import "context"

type onceKey struct{}

// Once marks the statements of a call as ones that hardly come again: to have them prepared is not worth a round trip.
func Once(ctx context.Context) context.Context { return context.WithValue(ctx, onceKey{}, true) }

// IsOnce reports whether ctx comes from Once.
func IsOnce(ctx context.Context) bool { return ctx.Value(onceKey{}) != nil }
