// Package confirmation is what a consumer tells the producer about a message: the form in which it
// travels back.
package confirmation

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace/dedup"
)

// Outcome is how a group ended with a message.
type Outcome string

const (
	// Done: it took effect, now or in an earlier delivery.
	Done Outcome = "done"
	// Failed: the group gave it up for good.
	Failed Outcome = "failed"
)

// Confirmation is the word of one consumer group about one message.
type Confirmation struct {
	ID      string  `json:"id"`    // of the message
	Group   string  `json:"group"` // that confirms
	Outcome Outcome `json:"outcome"`
	Reason  string  `json:"reason,omitempty"` // why it failed: a short code
	// Sending is the number of the sending that this answers, as the message's metadata has it; the first is
	// 1. 0 is of a consumer that does not tell: it is taken to answer whatever was sent last.
	Sending int       `json:"sending,omitempty"`
	At      time.Time `json:"at"`
	// Signature is that of Sign.
	Signature string `json:"signature,omitempty"`
}

// Limits, those of the outbox's columns.
const (
	maxID     = 64
	maxGroup  = 100
	maxReason = 100
	maxBytes  = 4 << 10

	maxSignature = 200
)

// Message is the confirmation as it is published. Its id is the same for each "done", and for each "failed" that
// answers the same sending, so that what removes duplicates may remove it.
func (c Confirmation) Message() (*message.Message, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	payload, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("confirmation: %w", err)
	}
	index := 0
	if c.Outcome == Failed {
		index = 1 + c.Sending
	}
	return message.NewMessage(dedup.DerivedID(dedup.Key{Consumer: "confirm " + c.Group, MessageID: c.ID}, index), payload), nil
}

// Parse reads what came from a broker, where anybody may have put it.
func Parse(payload []byte) (Confirmation, error) {
	var c Confirmation
	if len(payload) > maxBytes {
		return c, errors.New("confirmation: too large")
	}
	if err := json.Unmarshal(payload, &c); err != nil {
		return Confirmation{}, errors.New("confirmation: not a JSON object of the right form")
	}
	if err := c.check(); err != nil {
		return Confirmation{}, err
	}
	return c, nil
}

func (c Confirmation) check() error {
	switch {
	case !text(c.ID, maxID) || c.ID == "":
		return errors.New("confirmation: no valid message id")
	case !text(c.Group, maxGroup) || c.Group == "":
		return errors.New("confirmation: no valid group")
	case c.Outcome != Done && c.Outcome != Failed:
		return errors.New("confirmation: unknown outcome")
	case c.Sending < 0 || c.Sending >= whatever:
		return errors.New("confirmation: no valid sending")
	case len(c.Signature) > maxSignature:
		return errors.New("confirmation: no valid signature")
	case !text(c.Reason, maxReason):
		return errors.New("confirmation: no valid reason")
	}
	return nil
}

func text(s string, most int) bool {
	if len(s) > most || !utf8.ValidString(s) {
		return false
	}
	for _, r := range s {
		if r == 0 {
			return false
		}
	}
	return true
}
