// Package form is how stores write down a message.
package form

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/millrace-go/millrace/store"
)

// head is what came with a message beside its payload. Names and values are bytes, which JSON keeps as
// they are, and strings are not: they come from outside and may be anything.
type head struct {
	ID       []byte      `json:"id"`
	Topic    []byte      `json:"topic,omitempty"`
	OrderKey []byte      `json:"order_key,omitempty"`
	Metadata [][2][]byte `json:"metadata,omitempty"`
}

type past struct {
	Returns  int             `json:"returns,omitempty"`
	Failures []store.Failure `json:"failures,omitempty"`
}

// Encode returns what is written of a message: its history, its head, its payload. None is nil.
func Encode(e store.Entry) (history, raw, payload []byte, err error) {
	if history, err = json.Marshal(past{e.Returns, e.History}); err != nil {
		return nil, nil, nil, err
	}
	h := head{ID: []byte(e.MessageID), Topic: []byte(e.Topic), OrderKey: []byte(e.OrderKey)}
	for name, value := range e.Metadata {
		h.Metadata = append(h.Metadata, [2][]byte{[]byte(name), []byte(value)})
	}
	if raw, err = json.Marshal(h); err != nil {
		return nil, nil, nil, err
	}
	if payload = e.Payload; payload == nil {
		payload = []byte{}
	}
	return history, raw, payload, nil
}

// Decode is the message of which that was written.
func Decode(group string, history, raw, payload []byte, attempts int) (store.Entry, error) {
	var h head
	if err := json.Unmarshal(raw, &h); err != nil {
		return store.Entry{}, fmt.Errorf("the stored head cannot be read: %w", err)
	}
	e := store.Entry{Group: group, MessageID: string(h.ID), Topic: string(h.Topic), OrderKey: string(h.OrderKey),
		Payload: payload, Attempts: attempts, Metadata: make(map[string]string, len(h.Metadata))}
	for _, pair := range h.Metadata {
		e.Metadata[string(pair[0])] = string(pair[1])
	}
	var p past
	if err := json.Unmarshal(history, &p); err != nil {
		return store.Entry{}, fmt.Errorf("the stored history cannot be read: %w", err)
	}
	e.Returns, e.History = p.Returns, p.Failures
	return e, nil
}

const maxName = 200

// Name is an id or a topic where it has to fit: as it is if it can be, else its hash, and so is one that
// looks like such a hash.
func Name(id string) string {
	const hashed = "sha256:"
	if len(id) <= maxName && utf8.ValidString(id) && !strings.ContainsFunc(id, unicode.IsControl) && !strings.HasPrefix(id, hashed) {
		return id
	}
	return hashed + hash(id)
}

// Key is an order key as it is written: "" stays "".
func Key(key string) string {
	if key == "" {
		return ""
	}
	return hash(key)
}

func hash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// Line is text that people read: valid, one line, at most n bytes.
func Line(s string, n int) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}
