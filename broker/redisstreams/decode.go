package redisstreams

import (
	"encoding/json"
	"fmt"
	"strings"

	wmredis "github.com/ThreeDotsLabs/watermill-redisstream/pkg/redisstream"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace/internal/meta"
)

const maxErrorText = 500

// decode makes a message of an entry. One that the marshaler does not understand becomes a message all
// the same: whoever reads it can set it aside, and the subscription goes on.
func decode(m wmredis.Unmarshaller, topic, id string, values map[string]any) *message.Message {
	msg, err := unmarshal(m, values)
	if err == nil {
		return msg
	}
	raw := make(map[string][]byte, len(values))
	for field, value := range values {
		raw[field] = []byte(fmt.Sprint(value))
	}
	payload, jsonErr := json.Marshal(raw)
	if jsonErr != nil {
		payload = nil // not reached: a map of bytes is always encoded
	}
	// The same entry has the same id each time it comes.
	msg = message.NewMessage(topic+"/"+id, payload)
	msg.Metadata.Set(meta.Reason, meta.Malformed)
	msg.Metadata.Set(meta.Error, bounded(err.Error()))
	return msg
}

func unmarshal(m wmredis.Unmarshaller, values map[string]any) (msg *message.Message, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("unmarshal panicked: %v", p)
		}
	}()
	msg, err = m.Unmarshal(values)
	switch {
	case err != nil:
		return nil, err
	case msg == nil:
		return nil, fmt.Errorf("unmarshal returned no message")
	case msg.UUID == "":
		return nil, fmt.Errorf("entry has no message id")
	}
	if msg.Metadata == nil {
		msg.Metadata = make(message.Metadata)
	}
	return msg, nil
}

func bounded(text string) string {
	if len(text) > maxErrorText {
		text = text[:maxErrorText]
	}
	return strings.ToValidUTF8(text, "?")
}
