package middleware

import (
	"context"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"
)

func TestNoMessagesAreNoBytes(t *testing.T) {
	t.Parallel()
	b, err := encodeOutputs(nil)
	require.NoError(t, err)
	require.Empty(t, b)
	out, err := decodeOutputs(t.Context(), nil)
	require.NoError(t, err)
	require.Empty(t, out)
}

// FuzzOutputs: what is remembered comes back as it was.
func FuzzOutputs(f *testing.F) {
	f.Add("id", "name", "value", []byte("payload"), 3)
	f.Add("", "", "\xff", []byte{}, 1)
	f.Fuzz(func(t *testing.T, id, name, value string, payload []byte, n int) {
		var in []*message.Message
		for range n % 5 {
			m := message.NewMessage(id, payload)
			m.Metadata[name] = value
			m.Metadata[name+"2"] = id
			in = append(in, m)
		}
		b, err := encodeOutputs(in)
		if err != nil {
			require.ErrorIs(t, err, ErrOutputTooLarge)
			return
		}
		out, err := decodeOutputs(context.Background(), b)
		require.NoError(t, err)
		require.Len(t, out, len(in))
		for i := range in {
			require.True(t, in[i].Equals(out[i]))
		}
	})
}

// FuzzDecodeOutputs: a record that somebody else wrote is an error, never a panic or a large allocation.
func FuzzDecodeOutputs(f *testing.F) {
	good, _ := encodeOutputs([]*message.Message{message.NewMessage("id", []byte("payload"))})
	f.Add(good)
	f.Add(good[:len(good)-1])
	f.Add(append(good, 0))
	f.Add([]byte{1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f})
	f.Add([]byte{2, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		out, err := decodeOutputs(context.Background(), b)
		if err != nil {
			require.True(t, IsPermanent(err))
			require.Empty(t, out)
		}
	})
}
