package redisstreams

import (
	"errors"
	"fmt"
	"math"
	"slices"

	wmredis "github.com/ThreeDotsLabs/watermill-redisstream/pkg/redisstream"
	"github.com/ThreeDotsLabs/watermill/message"
)

// encode makes an entry of a message.
func encode(m wmredis.Marshaller, topic string, msg *message.Message) (entry, error) {
	switch {
	case msg == nil:
		return entry{}, errors.New("message is nil")
	case topic == "":
		return entry{}, errors.New("topic is empty")
	}
	if _, stock := m.(wmredis.DefaultMarshallerUnmarshaller); stock && plain(msg) {
		return plainEntry(msg), nil
	}
	values, err := m.Marshal(topic, msg)
	switch {
	case err != nil:
		return entry{}, err
	case len(values) == 0:
		return entry{}, errors.New("marshaler returned no field")
	case len(values) > maxFields:
		return entry{}, fmt.Errorf("entry has %d fields, at most %d are possible", len(values), maxFields)
	}
	names := make([]string, 0, len(values))
	for name := range values {
		names = append(names, name)
	}
	slices.Sort(names)
	e := entry{args: make([]any, 0, 2*len(names))}
	for _, name := range names {
		e.args = append(e.args, name, values[name])
		e.bytes += len(name) + size(values[name])
	}
	return e, nil
}

func size(value any) int {
	switch v := value.(type) {
	case string:
		return len(v)
	case []byte:
		return len(v)
	default:
		return 32
	}
}

// plain reports whether plainEntry may encode the message. What the stock marshaler refuses, it is to refuse
// itself.
func plain(msg *message.Message) bool {
	return msg.Metadata[wmredis.UUIDHeaderKey] == "" && len(msg.Metadata) <= math.MaxUint16
}

// plainEntry is what watermill-redisstream's own marshaler makes of a message: the same fields with the same
// bytes, but for the order of the metadata, which has none.
func plainEntry(msg *message.Message) entry {
	metadata := packMap(msg.Metadata)
	return entry{
		args: []any{wmredis.UUIDHeaderKey, msg.UUID, "metadata", metadata, "payload", []byte(msg.Payload)},
		bytes: len(wmredis.UUIDHeaderKey) + len(msg.UUID) + len("metadata") + len(metadata) +
			len("payload") + len(msg.Payload),
	}
}

// packMap writes metadata as MessagePack; of none there is nothing.
func packMap(m message.Metadata) []byte {
	if len(m) == 0 {
		return nil
	}
	const head = 5 // of a string, at most
	size := head
	for name, value := range m {
		size += 2*head + len(name) + len(value)
	}
	b := make([]byte, 0, size)
	if n := len(m); n < 16 {
		b = append(b, 0x80|byte(n))
	} else {
		b = append(b, 0xde, byte(n>>8), byte(n))
	}
	for name, value := range m {
		b = packString(packString(b, name), value)
	}
	return b
}

func packString(b []byte, s string) []byte {
	switch n := len(s); {
	case n < 32:
		b = append(b, 0xa0|byte(n))
	case n <= math.MaxUint8:
		b = append(b, 0xd9, byte(n))
	case n <= math.MaxUint16:
		b = append(b, 0xda, byte(n>>8), byte(n))
	default:
		b = append(b, 0xdb, byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
	}
	return append(b, s...)
}
