package redisstreams

import (
	"strconv"
	"strings"
	"testing"

	wmredis "github.com/ThreeDotsLabs/watermill-redisstream/pkg/redisstream"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"
)

// stock hides which marshaler it is, so that its own bytes are used.
type stock struct {
	wmredis.DefaultMarshallerUnmarshaller
}

func fields(t *testing.T, e entry) map[string]any {
	t.Helper()
	values := map[string]any{}
	for i := 0; i < len(e.args); i += 2 {
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
