package redisstreams

import (
	"encoding"
	"errors"
	"fmt"
	"math"
	"net"
	"reflect"
	"slices"
	"time"

	wmredis "github.com/ThreeDotsLabs/watermill-redisstream/pkg/redisstream"
	"github.com/ThreeDotsLabs/watermill/message"
)

// head is how many of XADD's arguments come before the fields.
const head = 3

// encode makes an entry of a message: XADD topic * field value field value ... The topic is a string; as an any it
// is the same for all messages of a stream, and need not be made for each.
func encode(m wmredis.Marshaller, topic any, msg *message.Message) (entry, error) {
	switch {
	case msg == nil:
		return entry{}, errors.New("message is nil")
	case topic == "":
		return entry{}, errors.New("topic is empty")
	}
	if _, stock := m.(wmredis.DefaultMarshallerUnmarshaller); stock && plain(msg) {
		return plainEntry(topic, msg), nil
	}
	values, err := m.Marshal(topic.(string), msg)
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
	e := entry{args: make([]any, 0, head+2*len(names))}
	e.args = append(e.args, "xadd", topic, "*")
	for _, name := range names {
		value, err := argument(values[name])
		if err != nil {
			return entry{}, err
		}
		e.args = append(e.args, name, value)
		e.bytes += len(name) + size(value)
	}
	return e, nil
}

// argument is a value that the client can send. What it cannot would end the pipeline in the middle, as an outage
// that comes again with each try, and leave another copy of what is before it in the stream each time.
func argument(value any) (any, error) {
	switch v := value.(type) {
	case nil, string, []byte, net.IP, time.Time, *time.Time, time.Duration, *time.Duration:
		return value, nil
	case encoding.BinaryMarshaler:
		return v.MarshalBinary()
	}
	t := reflect.TypeOf(value)
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if named := t.PkgPath() != ""; named || t.Kind() > reflect.Float64 && t.Kind() != reflect.String {
		return nil, fmt.Errorf("marshaler returned a field of type %T, which the Redis client does not take", value)
	}
	return value, nil
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
func plainEntry(topic any, msg *message.Message) entry {
	metadata := packMap(msg.Metadata)
	return entry{
		args: []any{"xadd", topic, "*", wmredis.UUIDHeaderKey, msg.UUID, "metadata", metadata, "payload", []byte(msg.Payload)},
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
