// Package form is how stores write down a message.
package form

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
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

// NoHistory is the history of a message that has none.
const NoHistory = "{}"

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

// Decode is the message of which that was written; with an error, what of it can be read, and the payload.
func Decode(group string, history, raw, payload []byte, attempts int) (store.Entry, error) {
	var h head
	err := json.Unmarshal(raw, &h)
	if err == nil && len(h.ID) == 0 {
		err = errors.New("there is no id")
	}
	if err != nil {
		return store.Entry{Group: group, Payload: payload, Attempts: attempts}, fmt.Errorf("the stored head cannot be read: %w", err)
	}
	e := store.Entry{Group: group, MessageID: string(h.ID), Topic: string(h.Topic), OrderKey: string(h.OrderKey),
		Payload: payload, Attempts: attempts, Metadata: make(map[string]string, len(h.Metadata))}
	for _, pair := range h.Metadata {
		e.Metadata[string(pair[0])] = string(pair[1])
	}
	var p past
	if err := json.Unmarshal(history, &p); err != nil {
		return e, fmt.Errorf("the stored history cannot be read: %w", err)
	}
	e.Returns, e.History = p.Returns, p.Failures
	return e, nil
}

// Letter is l with the message of which that was written. Of one that cannot be read, name and topic are as
// they were written beside it.
func Letter(l store.Letter, name, topic string, history, raw, payload []byte) store.Letter {
	l.Entry, l.Unreadable = Decode(l.Group, history, raw, payload, l.Attempts)
	if l.MessageID == "" {
		l.MessageID, l.Topic = name, topic
	}
	return l
}

const maxName = 200

// hashed begins what is a hash.
const hashed = "sha256:"

// Name is an id or a topic where it has to fit: as it is if it can be, else its hash, and so is one that
// looks like such a hash.
func Name(id string) string {
	if len(id) <= maxName && utf8.ValidString(id) && !strings.ContainsFunc(id, unicode.IsControl) && !strings.HasPrefix(id, hashed) {
		return id
	}
	return hashed + hash(id)
}

// NameOf is the name of a message of whose id only the Key is known.
func NameOf(key string) string { return hashed + key }

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
