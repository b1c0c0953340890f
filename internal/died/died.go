// Package died lets a subscriber say why its subscription ended. Watermill's router only sees the
// channel close, and cannot be asked for the subscriber behind it.
package died

import "context"

type key struct{}

// With returns a context under which Report calls report.
func With(ctx context.Context, report func(error)) context.Context {
	return context.WithValue(ctx, key{}, report)
}

// Report says that the subscription made with ctx is about to end, or has not come about, because of
// err. Call it before the message channel is closed. Without a listener it does nothing.
func Report(ctx context.Context, err error) {
	if report, ok := ctx.Value(key{}).(func(error)); ok && err != nil {
		report(err)
	}
}
