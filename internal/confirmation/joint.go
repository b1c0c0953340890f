package confirmation

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"slices"
	"strings"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace/dedup"
)

// Confirmations that are made at the same time travel in one message, a JSON array of them: a broker has to store and
// to hand out one message, and not hundreds.

// Bounds of such a message.
const (
	MaxJoint      = 256
	MaxJointBytes = 128 << 10
)

// Fit is how many of the first of these confirmations one message carries.
func Fit(said []*message.Message) int {
	size := len("[]")
	for i, m := range said {
		size += len(m.Payload) + len(",")
		if i > 0 && (i == MaxJoint || size > MaxJointBytes) {
			return i
		}
	}
	return len(said)
}

// Join is the one message that carries them all, at least one and not more than Fit. A single one stays as it is. The id
// of several is made of theirs, so that a copy can be told: messages with the same id say the same, and what
// removes duplicates by it loses nothing.
func Join(said []*message.Message) *message.Message {
	if len(said) == 1 {
		return said[0]
	}
	ids, payloads := make([]string, len(said)), make([][]byte, len(said))
	for i, m := range said {
		ids[i], payloads[i] = m.UUID, m.Payload
	}
	payload := slices.Concat([]byte("["), bytes.Join(payloads, []byte(",")), []byte("]"))
	return message.NewMessage(dedup.DerivedID(dedup.Key{Consumer: "confirmations", MessageID: strings.Join(ids, " ")}, 0), payload)
}

// Said is a confirmation, or why there is none. With ErrUnsigned it is what somebody claims.
type Said struct {
	Confirmation
	Err error
}

// ParseAll reads a message with one confirmation or several. Each is judged for itself: what is wrong with one says
// nothing about the others. What is wrong with all of them is said once.
func ParseAll(payload []byte, keys [][]byte) []Said {
	if !bytes.HasPrefix(bytes.TrimLeft(payload, " \t\r\n"), []byte("[")) {
		c, err := ParseSigned(payload, keys)
		return []Said{{c, err}}
	}
	none := func(why string) []Said { return []Said{{Err: errors.New("confirmation: " + why)}} }
	if len(payload) > MaxJointBytes {
		return none("too large")
	}
	var members []json.RawMessage
	if err := json.Unmarshal(payload, &members); err != nil {
		return none("not a JSON array")
	}
	switch {
	case len(members) == 0:
		return none("an empty array")
	case len(members) > MaxJoint:
		return none("too many in one message")
	}
	all := make([]Said, len(members))
	for i, m := range members {
		all[i].Confirmation, all[i].Err = ParseSigned(m, keys)
	}
	return all
}

// Counting are those that count, sorted by message and group: of what a group says twice about a message, that which
// Word.Replaces leaves.
func Counting(all []Confirmation) (counting []Confirmation) {
	all = slices.Clone(all)
	slices.SortStableFunc(all, func(a, b Confirmation) int {
		return cmp.Or(strings.Compare(a.ID, b.ID), strings.Compare(a.Group, b.Group))
	})
	for _, c := range all {
		last := len(counting) - 1
		switch {
		case last < 0 || counting[last].ID != c.ID || counting[last].Group != c.Group:
			counting = append(counting, c)
		case c.Word().Replaces(counting[last].Word()):
			counting[last] = c
		}
	}
	return counting
}
