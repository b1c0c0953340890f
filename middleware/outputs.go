package middleware

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace/dedup"
)

// deriveOutputs replaces the ids of the messages that a handler returned by ones that every run
// yields. The handler's own messages are left as they are: it may have returned the one it was given.
func deriveOutputs(from *message.Message, key dedup.Key, out []*message.Message) []*message.Message {
	derived := make([]*message.Message, 0, len(out))
	for i, m := range out {
		d := m.Copy()
		d.UUID = dedup.DerivedID(key, i)
		d.SetContext(from.Context())
		derived = append(derived, d)
	}
	return derived
}

// outputsV1 opens the encoding: then, with unsigned varints for all numbers, the count of messages;
// for each its id, the count of metadata pairs, the pairs in order of name, the payload. Strings
// and payloads are preceded by their length. No messages are no bytes.
const outputsV1 = 1

var errOutputs = hopeless(errors.New("middleware: the remembered messages cannot be read"), "remembered_output_unreadable")

func encodeOutputs(out []*message.Message) ([]byte, error) {
	if len(out) == 0 {
		return nil, nil
	}
	b := binary.AppendUvarint([]byte{outputsV1}, uint64(len(out)))
	for _, m := range out {
		b = appendString(b, m.UUID)
		b = binary.AppendUvarint(b, uint64(len(m.Metadata)))
		names := make([]string, 0, len(m.Metadata))
		for name := range m.Metadata {
			names = append(names, name)
		}
		slices.Sort(names)
		for _, name := range names {
			b = appendString(appendString(b, name), m.Metadata[name])
		}
		b = appendString(b, string(m.Payload))
	}
	if len(b) > dedup.MaxResult {
		return nil, hopeless(fmt.Errorf("%w: %d messages, %d bytes, at most %d", ErrOutputTooLarge, len(out), len(b),
			dedup.MaxResult), "output_too_large")
	}
	return b, nil
}

func decodeOutputs(ctx context.Context, b []byte) ([]*message.Message, error) {
	if len(b) == 0 {
		return nil, nil
	}
	r := outputReader{rest: b[1:], bad: b[0] != outputsV1}
	var out []*message.Message
	for range r.count() {
		m := message.NewMessageWithContext(ctx, r.string(), nil)
		for range r.count() {
			name := r.string()
			m.Metadata[name] = r.string()
			if r.bad {
				return nil, errOutputs
			}
		}
		m.Payload = message.Payload(r.string())
		if r.bad {
			return nil, errOutputs
		}
		out = append(out, m)
	}
	if r.bad || len(r.rest) > 0 {
		return nil, errOutputs
	}
	return out, nil
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// outputReader reads until something does not fit, and nothing from then on.
type outputReader struct {
	rest []byte
	bad  bool
}

// count reads a number of things, each of which takes a byte at least.
func (r *outputReader) count() int {
	n, size := binary.Uvarint(r.rest)
	if r.bad || size <= 0 || n > uint64(len(r.rest)-size) {
		r.bad = true
		return 0
	}
	r.rest = r.rest[size:]
	return int(n)
}

func (r *outputReader) string() string {
	n := r.count()
	s := string(r.rest[:n])
	r.rest = r.rest[n:]
	return s
}
