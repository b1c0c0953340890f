package middleware

import (
	"errors"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

// Rule says what an error of a handler means. Of the rules that match the first counts; an error that none
// matches means what it says itself.
type Rule struct {
	// Handler is the name of the router's handler. "" = every one.
	Handler string
	// Match chooses errors: Is, As, or a function of your own. nil = every one.
	Match func(error) bool
	// Reason, if set, is the code that is stored with the message.
	Reason string
	// Permanent: no further attempt changes it.
	Permanent bool
	// After, if set, is the least time before the next attempt.
	After time.Duration
	// NotYet: no verdict on the message; it comes again, after After if that is set, and no attempt is counted.
	NotYet bool
}

// Is chooses the errors that errors.Is finds target in.
func Is(target error) func(error) bool {
	return func(err error) bool { return errors.Is(err, target) }
}

// As chooses the errors that errors.As finds an E in.
func As[E error]() func(error) bool {
	return func(err error) bool {
		var e E
		return errors.As(err, &e)
	}
}

// Classify marks the errors of handlers by rules, as Permanent, RetryAfter, NotYet and WithReason do
// one by one. It belongs inside Retry, and outside of Recoverer, so that it sees panics too.
func Classify(rules ...Rule) (message.HandlerMiddleware, error) {
	var errs []error
	for i, r := range rules {
		if r.After < 0 {
			errs = append(errs, fmt.Errorf("middleware: Classify: rule %d: After %s is negative", i, r.After))
		}
		if r.Permanent && (r.NotYet || r.After > 0) {
			errs = append(errs, fmt.Errorf("middleware: Classify: rule %d: Permanent and another attempt contradict each other", i))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return func(next message.HandlerFunc) message.HandlerFunc {
		return func(msg *message.Message) ([]*message.Message, error) {
			handler := message.HandlerNameFromCtx(msg.Context())
			out, err := next(msg)
			if err == nil {
				return out, nil
			}
			for _, r := range rules {
				if (r.Handler == "" || r.Handler == handler) && (r.Match == nil || r.Match(err)) {
					return out, r.mark(err)
				}
			}
			return out, err
		}
	}, nil
}

func (r Rule) mark(err error) error {
	if r.Reason != "" {
		err = WithReason(err, r.Reason)
	}
	switch {
	case r.Permanent:
		return Permanent(err)
	case r.NotYet:
		return NotYet(err, r.After)
	case r.After > 0:
		return RetryAfter(err, r.After)
	}
	return err
}
