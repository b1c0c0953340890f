package outbox

import (
	"encoding/json"
	"errors"
	"strings"
	"unicode/utf8"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace/internal/meta"
)

// decodeMetadata is the inverse of encodeMetadata, with the key put back. The strings may share the memory of
// text.
func decodeMetadata(text, key string) (message.Metadata, error) {
	m, ok := plainMetadata(text)
	if !ok {
		var slow message.Metadata // of its own: it escapes
		if err := json.Unmarshal([]byte(text), &slow); err != nil {
			return nil, errors.New("metadata is not a JSON object of strings") // the cause would quote it
		}
		m = slow
	}
	if m == nil {
		m = message.Metadata{}
	}
	if key != "" {
		m[meta.Key] = key
	}
	return m, nil
}

// plainMetadata reads an object of strings without escapes, which nearly all are. Whatever else it comes
// upon, it leaves to encoding/json, and says so.
func plainMetadata(text string) (message.Metadata, bool) {
	rest, ok := strings.CutPrefix(text, "{")
	if !ok || strings.IndexByte(text, '\\') >= 0 || !utf8.ValidString(text) {
		return nil, false
	}
	m := make(message.Metadata, strings.Count(text, `"`)/4+1) // and the key
	if rest = afterSpace(rest); rest == "}" {
		return m, true
	}
	for {
		var name, value string
		if name, rest, ok = plainString(rest); !ok {
			return nil, false
		}
		if rest, ok = strings.CutPrefix(afterSpace(rest), ":"); !ok {
			return nil, false
		}
		if value, rest, ok = plainString(rest); !ok {
			return nil, false
		}
		m[name] = value
		rest = afterSpace(rest)
		if rest == "}" {
			return m, true
		}
		if rest, ok = strings.CutPrefix(rest, ","); !ok {
			return nil, false
		}
	}
}

// plainString reads a string that has no escapes.
func plainString(text string) (value, rest string, ok bool) {
	if text, ok = strings.CutPrefix(afterSpace(text), `"`); !ok {
		return "", "", false
	}
	if value, rest, ok = strings.Cut(text, `"`); !ok {
		return "", "", false
	}
	for i := range len(value) {
		if value[i] < ' ' {
			return "", "", false
		}
	}
	return value, rest, true
}

// afterSpace is text without a space in front, such as databases put behind a colon or comma.
func afterSpace(text string) string { return strings.TrimPrefix(text, " ") }
