package redisstreams

import (
	"fmt"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/internal/meta"
)

// FuzzRoundTrip: a message arrives as it was, after the server has made text of every field.
func FuzzRoundTrip(f *testing.F) {
	f.Add("id", "name", "value", []byte("payload"))
	f.Add("id", "", "\xff\x00", []byte{})
	f.Add("\x00", "metadata", "payload", []byte{0xc1, 0xff})
	f.Add("", "a", "b", []byte("without an id"))
	cfg, err := Config{URL: "redis://localhost"}.withDefaults()
	require.NoError(f, err)
	f.Fuzz(func(t *testing.T, id, name, value string, payload []byte) {
		in := message.NewMessage(id, payload)
		in.Metadata[name] = value
		in.Metadata[name+"2"] = id
		e, err := encode(cfg.Marshaler, "topic", in)
		require.NoError(t, err)
		require.Positive(t, e.bytes)
		values := map[string]any{}
		for i := head; i < len(e.args); i += 2 {
			values[e.args[i].(string)] = text(t, e.args[i+1])
		}
		out := decode(cfg.Marshaler, "topic", "1-0", values)
		if id == "" {
			require.Equal(t, meta.Malformed, out.Metadata[meta.Reason])
			return
		}
		require.True(t, in.Equals(out), "%q became %q", in.Metadata, out.Metadata)
	})
}

// text is how a value comes back from the server.
func text(t *testing.T, v any) string {
	switch v := v.(type) {
	case string:
		return v
	case []byte:
		return string(v)
	case message.Payload:
		return string(v)
	}
	t.Fatalf("a field of type %T", v)
	return fmt.Sprint(v)
}
