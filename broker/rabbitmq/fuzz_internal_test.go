package rabbitmq

import (
	"testing"
	"time"
	"unicode/utf8"

	"github.com/ThreeDotsLabs/watermill-amqp/v3/pkg/amqp"
	"github.com/ThreeDotsLabs/watermill/message"
	amqp091 "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/internal/meta"
)

// FuzzRoundTrip: a message that is not refused arrives as it was, and one that is refused says why.
func FuzzRoundTrip(f *testing.F) {
	f.Add("id", "name", "value", []byte("payload"))
	f.Add("", "", "", []byte{})
	f.Add("\xff", "x-death", "\x00", []byte{0xff})
	f.Add("id", meta.Prefix+"publish", "mine", []byte("p"))
	f.Add("id", amqp.DefaultMessageUUIDHeaderKey, "another id", []byte("p"))
	f.Add("id", string(make([]byte, 300)), "too long a name", []byte("p"))
	cfg, err := Config{URL: "amqp://localhost"}.withDefaults()
	require.NoError(f, err)
	f.Fuzz(func(t *testing.T, id, name, value string, payload []byte) {
		in := message.NewMessage(id, payload)
		in.Metadata[name] = value
		var o outgoing
		if err := cfg.prepare(&o, "topic", in); err != nil {
			require.NotEmpty(t, err.Error())
			return
		}
		size, err := tableSize(o.publishing.Headers)
		require.NoError(t, err)
		require.Positive(t, size)
		p := o.publishing
		out := decode(cfg.AMQP.Marshaler, amqp091.Delivery{Headers: p.Headers, MessageId: p.MessageId, Body: p.Body})
		require.Equal(t, string(payload), string(out.Payload))
		require.NotEmpty(t, out.UUID)
		if name == amqp.DefaultMessageUUIDHeaderKey || name == returnHeader {
			return // names of the transport: what a user puts there is not kept
		}
		require.Equal(t, value, out.Metadata[name])
		require.Len(t, out.Metadata, 1)
		if id != "" {
			require.Equal(t, id, out.UUID)
		}
	})
}

// FuzzHeaders: whatever header there is, of whatever type and however deep, the entry becomes a message
// with an id, of every marshaler.
func FuzzHeaders(f *testing.F) {
	for kind := range byte(16) {
		f.Add(kind, "x-death", "value", int64(3), []byte("body"))
	}
	f.Add(byte(3), amqp.DefaultMessageUUIDHeaderKey, "", int64(0), []byte{})
	f.Add(byte(0), "", "\xff\x00", int64(-1), []byte("body"))
	f.Fuzz(func(t *testing.T, kind byte, name, text string, number int64, body []byte) {
		for _, m := range []amqp.Marshaler{Marshaler{}, amqp.DefaultMarshaler{}, amqp.CorrelatingMarshaler{}} {
			d := amqp091.Delivery{Headers: amqp091.Table{name: header(kind, text, number, 0)}, Body: body, MessageId: text}
			msg := decode(m, d)
			require.NotEmpty(t, msg.UUID)
			require.Equal(t, string(body), string(msg.Payload))
			require.NotNil(t, msg.Metadata)
			if value, ok := msg.Metadata[name]; ok && utf8.ValidString(text) && utf8.ValidString(name) {
				require.True(t, utf8.ValidString(value), "%T became %q", d.Headers[name], value)
			}
			deliveries(d)
		}
	})
}

// header is a value of each type that AMQP has, and of some that it has not.
func header(kind byte, text string, number int64, depth int) any {
	switch kind % 16 {
	case 0:
		return text
	case 1:
		return []byte(text)
	case 2:
		return nil
	case 3:
		return number
	case 4:
		return int32(number)
	case 5:
		return int8(number)
	case 6:
		return uint16(number)
	case 7:
		return float64(number) / 3
	case 8:
		return float32(number)
	case 9:
		return number%2 == 0
	case 10:
		return time.Unix(number%(1<<40), 0)
	case 11:
		return amqp091.Decimal{Scale: uint8(number), Value: int32(number)}
	case 12, 13:
		if depth > 4 {
			return amqp091.Table{}
		}
		return amqp091.Table{text: header(kind+byte(number), text, number>>1, depth+1)}
	case 14:
		if depth > 4 {
			return []any{}
		}
		return []any{header(kind+byte(number), text, number>>1, depth+1), nil, text}
	}
	return struct{ X string }{text} // of no AMQP library
}
