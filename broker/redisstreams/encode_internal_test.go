package redisstreams

import (
	"errors"
	"net"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	wmredis "github.com/ThreeDotsLabs/watermill-redisstream/pkg/redisstream"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/internal/testenv"
)

// stock hides which marshaler it is, so that its own bytes are used.
type stock struct {
	wmredis.DefaultMarshallerUnmarshaller
}

func fields(t *testing.T, e entry) map[string]any {
	t.Helper()
	values := map[string]any{}
	for i := head; i < len(e.args); i += 2 {
		values[e.args[i].(string)] = text(t, e.args[i+1])
	}
	return values
}

func TestEntriesAreThoseOfTheStockMarshaler(t *testing.T) {
	lengths := []int{0, 1, 31, 32, 255, 256, 65535, 65536, 70000}
	for _, n := range lengths {
		for _, m := range lengths {
			msg := message.NewMessage(strings.Repeat("u", n), []byte(strings.Repeat("p", m)))
			msg.Metadata = message.Metadata{strings.Repeat("n", n): strings.Repeat("\xff", m)}
			want, err := encode(stock{}, "topic", msg)
			require.NoError(t, err)
			got, err := encode(wmredis.DefaultMarshallerUnmarshaller{}, "topic", msg)
			require.NoError(t, err)
			require.Equal(t, want, got, "to the byte: lengths %d and %d", n, m)
		}
	}
	for _, n := range []int{0, 1, 15, 16, 17, 255, 256, 65535, 65536} {
		msg := message.NewMessage("id", nil)
		for i := range n {
			msg.Metadata[strconv.Itoa(i)] = "value"
		}
		want, err := encode(stock{}, "topic", msg)
		require.NoError(t, err)
		got, err := encode(wmredis.DefaultMarshallerUnmarshaller{}, "topic", msg)
		require.NoError(t, err)
		require.Equal(t, want.bytes, got.bytes)
		out, err := stock{}.Unmarshal(fields(t, got))
		require.NoError(t, err)
		require.True(t, msg.Equals(out), "%d entries of metadata", n)
	}
	msg := message.NewMessage("id", nil)
	msg.Metadata = nil
	want, err := encode(stock{}, "topic", msg)
	require.NoError(t, err)
	got, err := encode(wmredis.DefaultMarshallerUnmarshaller{}, "topic", msg)
	require.NoError(t, err)
	require.Equal(t, want, got)
}

func TestWhatTheStockMarshalerRefusesIsRefused(t *testing.T) {
	msg := message.NewMessage("id", nil)
	msg.Metadata[wmredis.UUIDHeaderKey] = "x"
	_, err := encode(wmredis.DefaultMarshallerUnmarshaller{}, "topic", msg)
	require.ErrorContains(t, err, "reserved")
}

// odd makes a field of what is in values under the message's id.
type odd struct {
	wmredis.DefaultMarshallerUnmarshaller
	values map[string]any
}

func (m odd) Marshal(_ string, msg *message.Message) (map[string]any, error) {
	return map[string]any{"n": msg.UUID, "value": m.values[msg.UUID]}, nil
}

type (
	named  string
	broken struct{}
)

func (broken) MarshalBinary() ([]byte, error) { return nil, errors.New("cannot") }

func TestAFieldThatTheClientCannotSendRefusesItsMessageAlone(t *testing.T) {
	t.Parallel()
	c, topic := testClient(t), testenv.RedisPrefix(t)+"s"
	one, when, u := 1, time.Unix(0, 0), &url.URL{Host: "host"}
	values := []any{
		nil, "s", []byte("s"), true, 1, int8(1), uint64(1), uintptr(1), float32(1), 1.5, &one, (*string)(nil), when, &when, time.Second, net.IP{1, 2, 3, 4}, u,
		named("s"), []string{"s"}, map[string]string{}, struct{}{}, complex(1, 1), &struct{}{}, new(named), new([]byte), func() {}, broken{}, message.Payload("s"),
	}
	m := odd{values: make(map[string]any)}
	var topics, want []string
	var msgs []*message.Message
	for i, v := range values {
		id := strconv.Itoa(i)
		m.values[id] = v
		topics = append(topics, topic)
		msgs = append(msgs, message.NewMessage(id, nil))
		if c.Set(t.Context(), topic+"plain", v, 0).Err() == nil {
			want = append(want, id)
		}
	}
	p, err := NewPublisher(Config{Client: c, Marshaler: m})
	require.NoError(t, err)
	var stored []string
	for i, err := range p.PublishBatch(t.Context(), topics, msgs) {
		if err == nil {
			stored = append(stored, msgs[i].UUID)
			continue
		}
		var refused *refusal
		require.ErrorAs(t, err, &refused)
		require.Equal(t, "encoding", refused.Reason())
	}
	require.Equal(t, want, stored, "what the client itself can send")
	require.Equal(t, want, numbersIn(t, c, topic))
	require.Len(t, want, 17)
}

// FuzzStockUnmarshaler: the stock subscriber reads what this publisher writes.
func FuzzStockUnmarshaler(f *testing.F) {
	f.Add("id", "name", "value", []byte("payload"))
	f.Add("", "", "\xff\x00", []byte{})
	f.Add("id", strings.Repeat("n", 300), strings.Repeat("v", 70000), []byte{0xc1})
	f.Fuzz(func(t *testing.T, id, name, value string, payload []byte) {
		in := message.NewMessage(id, payload)
		in.Metadata[name] = value
		in.Metadata[name+"2"] = id
		got, err := encode(wmredis.DefaultMarshallerUnmarshaller{}, "topic", in)
		want, stockErr := encode(stock{}, "topic", in)
		require.Equal(t, stockErr == nil, err == nil)
		if err != nil {
			return
		}
		require.Equal(t, want.bytes, got.bytes)
		out, err := stock{}.Unmarshal(fields(t, got))
		require.NoError(t, err)
		require.True(t, in.Equals(out))
	})
}
