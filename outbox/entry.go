package outbox

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace/internal/meta"
)

// Limits of a message. They are part of the schema.
const (
	maxID           = 64
	maxTopic        = 200
	maxKey          = 255
	maxSchedule     = 200
	maxGroup        = 200
	maxEntries      = 64      // of metadata
	maxMetadata     = 8 << 10 // bytes of names and values together
	maxMetadataName = 128
	defaultPayload  = 1 << 20
)

// WithKey sets the message's order key and returns the message. Messages of one key are forwarded in
// the order in which the transactions that wrote them committed. An empty key removes it.
func WithKey(msg *message.Message, key string) *message.Message {
	if key == "" {
		delete(msg.Metadata, meta.Key)
		return msg
	}
	if msg.Metadata == nil {
		msg.Metadata = message.Metadata{}
	}
	msg.Metadata[meta.Key] = key
	return msg
}

// entry is a message as it is inserted: checked, and a copy.
type entry struct {
	id, topic, key string
	lane           int
	metadata       string // JSON, without what millrace reserves
	payload        []byte
	due            due
	schedule       string
	frozen
}

// plain reports whether the row has nothing but defaults in the columns that few rows need.
func (e entry) plain() bool { return !e.due.delayed() && e.schedule == "" && e.keep == 0 }

func (e entry) size() int { return len(e.payload) + len(e.metadata) }

// encoder makes entries of messages.
type encoder struct {
	maxPayload  int
	key         func(topic string, msg *message.Message) string
	propagators []Propagator
	policies    policies
}

func newEncoder(cfg Config) encoder {
	return encoder{maxPayload: cfg.MaxPayload, key: cfg.Key, propagators: cfg.Propagators, policies: newPolicies(cfg.Policies, cfg.Confirming.withDefaults().Topic)}
}

// encode checks all messages before any of them counts. Errors name positions and sizes, never content.
// The context of a message is asked for by its number.
func (enc encoder) encode(contexts func(i int) context.Context, topic string, msgs []*message.Message) ([]entry, error) {
	if err := checkName("topic", topic, maxTopic); err != nil {
		return nil, err
	}
	policy := enc.policies.of(topic)
	entries := make([]entry, 0, len(msgs))
	var seen map[string]struct{} // of several
	if len(msgs) > 1 {
		seen = make(map[string]struct{}, len(msgs))
	}
	for i, msg := range msgs {
		e, err := enc.encodeOne(contexts, i, topic, msg)
		if err != nil {
			return nil, fmt.Errorf("%w: message %d of %d for %q: %w", ErrInvalidMessage, i+1, len(msgs), topic, err)
		}
		if _, twice := seen[e.id]; twice {
			return nil, fmt.Errorf("%w: id %q twice in one call", ErrDuplicateMessage, e.id)
		}
		if seen != nil {
			seen[e.id] = struct{}{}
		}
		e.frozen = policy
		for name, value := range policy.metadata {
			if e.metadata, err = withMetadata(e.metadata, name, value); err != nil {
				return nil, err
			}
		}
		entries = append(entries, e)
	}
	return entries, nil
}

func (enc encoder) encodeOne(contexts func(i int) context.Context, i int, topic string, msg *message.Message) (entry, error) {
	if msg == nil {
		return entry{}, fmt.Errorf("it is nil")
	}
	if err := checkText("id", msg.UUID, 1, maxID); err != nil {
		return entry{}, err
	}
	limit := enc.maxPayload
	if limit == 0 {
		limit = defaultPayload
	}
	if len(msg.Payload) > limit {
		return entry{}, fmt.Errorf("payload has %d bytes, more than Config.MaxPayload (%d): send a reference instead, or raise it together with the broker's limit", len(msg.Payload), limit)
	}
	key := msg.Metadata[meta.Key]
	if key == "" && enc.key != nil {
		key = enc.key(topic, msg)
	}
	if err := checkText("order key", key, 0, maxKey); err != nil {
		return entry{}, err
	}
	e := entry{id: msg.UUID, topic: topic, key: key, schedule: msg.Metadata[metaSchedule]}
	if err := checkText("schedule name", e.schedule, 0, maxSchedule); err != nil {
		return entry{}, err
	}
	var err error
	if e.due, err = dueOf(msg.Metadata); err != nil {
		return entry{}, err
	}
	carried := msg.Metadata
	if len(enc.propagators) > 0 && msg.Metadata[metaCaptured] == "" {
		carried = make(message.Metadata, len(msg.Metadata)+4)
		maps.Copy(carried, msg.Metadata)
		for _, p := range enc.propagators {
			p.Inject(contexts(i), carried)
		}
	}
	if e.metadata, err = encodeMetadata(carried); err != nil {
		return entry{}, err
	}
	e.payload = append(make([]byte, 0, len(msg.Payload)), msg.Payload...) // never nil: NULL is no payload
	if key != "" {
		e.lane = Lane(key)
	} else {
		e.lane = Lane(msg.UUID)
	}
	return e, nil
}

// encodeMetadata writes a JSON object whose names are in order.
func encodeMetadata(m message.Metadata) (string, error) {
	names := make([]string, 0, len(m))
	bytes := 0
	for name, value := range m {
		if strings.HasPrefix(name, meta.Prefix) {
			continue // reserved; the key has a column of its own
		}
		if err := checkText("name of a metadata entry", name, 1, maxMetadataName); err != nil {
			return "", err
		}
		if err := checkText("value", value, 0, maxMetadata); err != nil {
			return "", fmt.Errorf("metadata %q: %w", name, err)
		}
		names = append(names, name)
		bytes += len(name) + len(value)
	}
	if len(names) > maxEntries {
		return "", fmt.Errorf("metadata has %d entries, more than %d", len(names), maxEntries)
	}
	if bytes > maxMetadata {
		return "", fmt.Errorf("metadata has %d bytes, more than %d", bytes, maxMetadata)
	}
	slices.Sort(names)
	var b strings.Builder
	b.Grow(bytes + len(`"":"",`)*len(names) + len(`{}`))
	b.WriteByte('{')
	for i, name := range names {
		if i > 0 {
			b.WriteByte(',')
		}
		writeString(&b, name)
		b.WriteByte(':')
		writeString(&b, m[name])
	}
	b.WriteByte('}')
	return b.String(), nil
}

// writeString writes a JSON string. Most have nothing in them that JSON wants escaped.
func writeString(b *strings.Builder, s string) {
	if strings.IndexFunc(s, func(r rune) bool { return r < ' ' || r == '"' || r == '\\' }) >= 0 {
		text, _ := json.Marshal(s) // of a string it has no error
		b.Write(text)
		return
	}
	b.WriteByte('"')
	b.WriteString(s)
	b.WriteByte('"')
}

func checkName(what, s string, most int) error {
	if err := checkText(what, s, 1, most); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalidMessage, err)
	}
	return nil
}

func checkText(what, s string, least, most int) error {
	switch {
	case len(s) < least:
		return fmt.Errorf("%s is empty", what)
	case len(s) > most:
		return fmt.Errorf("%s has %d bytes, more than %d", what, len(s), most)
	case !utf8.ValidString(s):
		return fmt.Errorf("%s is not valid UTF-8", what)
	case strings.IndexByte(s, 0) >= 0:
		return fmt.Errorf("%s contains a NUL byte", what)
	}
	return nil
}
