package form_test

import (
	"bytes"
	"maps"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/millrace-go/millrace/store"
	"github.com/millrace-go/millrace/store/internal/form"
)

func FuzzAMessageIsReadAsItWasWritten(f *testing.F) {
	f.Add("id", "topic", "key", "name", "value", []byte("payload"), 3)
	f.Add("\xff", "", "\x00", "", "\u2028", []byte(nil), 0)
	f.Fuzz(func(t *testing.T, id, topic, key, name, value string, payload []byte, attempts int) {
		if id == "" {
			return // no store takes one
		}
		e := store.Entry{Group: "g", MessageID: id, Topic: topic, OrderKey: key, Metadata: map[string]string{name: value}, Payload: payload, Attempts: attempts}
		history, head, body, err := form.Encode(e)
		if err != nil {
			t.Fatal(err)
		}
		got, err := form.Decode("g", history, head, body, attempts)
		if err != nil {
			t.Fatal(err)
		}
		if got.MessageID != id || got.Topic != topic || got.OrderKey != key || !maps.Equal(got.Metadata, e.Metadata) ||
			!bytes.Equal(got.Payload, payload) || got.Attempts != attempts {
			t.Fatalf("got %+v, want %+v", got, e)
		}
	})
}

func TestAMessageWithoutAHistoryIsWrittenAsSuch(t *testing.T) {
	history, _, _, err := form.Encode(store.Entry{Group: "g", MessageID: "m"})
	if err != nil || string(history) != form.NoHistory {
		t.Fatalf("got %q, %v", history, err)
	}
}

func FuzzWhatCannotBeReadIsAnError(f *testing.F) {
	f.Add([]byte(`[]`), []byte(`{"id":"aWQ="}`))
	f.Add([]byte(`{`), []byte(`{"metadata":[["a"]]}`))
	f.Fuzz(func(_ *testing.T, history, head []byte) {
		_, _ = form.Decode("g", history, head, nil, 0) // never a panic
	})
}

func FuzzNamesFitAndStayApart(f *testing.F) {
	f.Add("a", "b")
	f.Add("sha256:x", strings.Repeat("x", 300))
	f.Fuzz(func(t *testing.T, a, b string) {
		for _, s := range []string{a, b} {
			if n := form.Name(s); len(n) > 200 || !utf8.ValidString(n) {
				t.Fatalf("name %q", n)
			}
			if l := form.Line(s, 10); len(l) > 10 || !utf8.ValidString(l) || strings.ContainsAny(l, "\r\n\x00") {
				t.Fatalf("line %q", l)
			}
		}
		if a != b && (form.Name(a) == form.Name(b) || form.Key(a) == form.Key(b)) {
			t.Fatalf("%q and %q have one name", a, b)
		}
	})
}
