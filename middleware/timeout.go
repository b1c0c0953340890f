package middleware

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

// ErrTimeout is the cause of a handler's context that Timeout has ended.
var ErrTimeout = errors.New("middleware: the handler took too long")

// Timeout ends the handler's context d after its start, with ErrTimeout as the cause. Whoever stands
// around it finds the message's context as it was. A handler that does not listen to its context is
// waited for: abandoned, it would go on beside its successor.
func Timeout(d time.Duration) (message.HandlerMiddleware, error) {
	if d <= 0 {
		return nil, fmt.Errorf("middleware: Timeout: %s is not a time to wait", d)
	}
	return func(next message.HandlerFunc) message.HandlerFunc {
		return func(msg *message.Message) ([]*message.Message, error) {
			outer := msg.Context()
			ctx, cancel := context.WithTimeoutCause(outer, d, ErrTimeout)
			defer cancel()
			msg.SetContext(ctx)
			defer msg.SetContext(outer)
			out, err := next(msg)
			if err != nil && errors.Is(context.Cause(ctx), ErrTimeout) && outer.Err() == nil {
				err = WithReason(fmt.Errorf("%w (%s): %w", ErrTimeout, d, err), "timeout")
			}
			return out, err
		}
	}, nil
}
