package outbox

import (
	"encoding/json"
	"maps"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/internal/meta"
)

// FuzzDecodeMetadata: reading metadata by hand gives what encoding/json gives, also of what is no metadata.
func FuzzDecodeMetadata(f *testing.F) {
	for _, text := range []string{
		`{}`, `{ }`, `{"a":"b"}`, `{"a": "b", "c": "d"}`, `{"a":"b","a":"c"}`, `{"":""}`, `{"\u0061":"\n\""}`, `{"a":"\\"}`,
		"{\"a\":\"\x00\"}", "{\"a\":\"\xff\"}", "{\"\t\":\"\"}", `{"a":"ü\ud800"}`, `{"\u2028":"<>&"}`, "{\"\u2028\":\"\u2029\"}",
		"", "{", "}", `{"`, `{"a`, `{"a"`, `{"a":`, `{"a":"`, `{"a":"b"`, `{"a":"b",}`, `{,}`, `{"a":"b"}}`, `{"a":"b"} `, `  {"a":"b"}`,
		`{"a":1}`, `{"a":null}`, `{"a":{}}`, `{"a":["b"]}`, `{a:"b"}`, `null`, `[]`, `"a"`, `{"a":"b" "c":"d"}`, `{"a" : "b" , "c" : "d" }`,
	} {
		f.Add(text, "")
		f.Add(text, "key")
	}
	f.Fuzz(func(t *testing.T, text, key string) {
		got, err := decodeMetadata(text, key)
		want := message.Metadata{}
		if json.Unmarshal([]byte(text), &want) != nil {
			require.Error(t, err)
			return
		}
		require.NoError(t, err)
		if want == nil {
			want = message.Metadata{}
		}
		if key != "" {
			want[meta.Key] = key
		}
		require.Equal(t, want, got)
	})
}

// FuzzMetadataRoundTrip: what was accepted comes back.
func FuzzMetadataRoundTrip(f *testing.F) {
	f.Add("name", "value", "other", "\u2028<\"\\>&")
	f.Add(" ", ":", "{\"", "\",\"")
	f.Fuzz(func(t *testing.T, name1, value1, name2, value2 string) {
		in := message.Metadata{name1: value1, name2: value2}
		text, err := encodeMetadata(in)
		if err != nil {
			return
		}
		want := maps.Clone(in)
		maps.DeleteFunc(want, func(name, _ string) bool {
			return len(name) >= len(meta.Prefix) && name[:len(meta.Prefix)] == meta.Prefix
		})
		got, err := decodeMetadata(text, "")
		require.NoError(t, err)
		require.Equal(t, want, got)
	})
}

func TestMetadataAsItIsUsuallyWrittenIsReadByHand(t *testing.T) {
	for text, want := range map[string]int{
		`{"event":"order.placed","tenant":"t1"}`: 2, `{}`: 0,
		`{"event": "order.placed", "tenant": "t1"}`: 2, // as jsonb and JSON columns give it
	} {
		m, ok := plainMetadata(text)
		require.True(t, ok, text)
		require.Len(t, m, want)
	}
	_, ok := plainMetadata(`{"a":"\n"}`)
	require.False(t, ok)
}
