package middleware

import (
	"fmt"
	"runtime/debug"
	"strings"
	"unicode/utf8"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace/internal/delivery"
)

// PanicError is a handler's panic. Its text is the value's, bounded; the stack is kept apart, since
// error texts travel in headers.
type PanicError struct {
	Value any
	Stack []byte
}

// Error is "panic: " with at most 200 bytes of the value.
func (e *PanicError) Error() string { return "panic: " + bounded(fmt.Sprint(e.Value), 200) }

// Unwrap returns the value if it is an error.
func (e *PanicError) Unwrap() error {
	err, _ := e.Value.(error)
	return err
}

// Recoverer turns a panic of the handler into a *PanicError, reason "panic". It is a
// message.HandlerMiddleware as it stands, and belongs innermost. There it also keeps DelayedRetry's word: a
// message whose attempts are spent passes it only if those in between know that it is done.
func Recoverer(next message.HandlerFunc) message.HandlerFunc {
	return func(msg *message.Message) (out []*message.Message, err error) {
		if err := delivery.Refusal(msg); err != nil {
			return nil, err
		}
		returned := false
		defer func() {
			// Not "v != nil": Goexit unwinds, too, and is not to be stopped.
			if v := recover(); !returned && v != nil {
				out, err = nil, WithReason(&PanicError{Value: v, Stack: debug.Stack()}, "panic")
			}
		}()
		out, err = next(msg)
		returned = true
		return out, err
	}
}

// bounded makes text fit for a header: valid UTF-8, one line, at most n bytes.
func bounded(s string, n int) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) <= n {
		return s
	}
	n -= len("…")
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}
