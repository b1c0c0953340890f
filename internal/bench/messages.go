package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strconv"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"

	"github.com/millrace-go/millrace/outbox"
)

// payloadSize is the size of every payload.
const payloadSize = 1024

// letters fill payloads: text that does not compress to nothing.
var letters = []byte("abcdefghijklmnopqrstuvwxyz0123456789 ABCDEFGHIJKLMNOPQRSTUVWXYZ")

// filler is drawn once: making text is not what is measured.
var filler = func() []byte {
	b := make([]byte, 1<<20)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range b {
		b[i] = letters[r.IntN(len(letters))]
	}
	return b
}()

// payload is a JSON document of payloadSize bytes that begins with a number.
func payload(seq int) []byte {
	b := make([]byte, 0, payloadSize)
	b = fmt.Appendf(b, `{"seq":%d,"order":"%08d","text":"`, seq, seq)
	at := (seq * 7919) % (len(filler) - payloadSize)
	b = append(b, filler[at:at+payloadSize-len(b)-2]...)
	return append(b, `"}`...)
}

// sequence reads the number back.
func sequence(payload []byte) (int, bool) {
	rest, ok := bytes.CutPrefix(payload, []byte(`{"seq":`))
	if !ok {
		return 0, false
	}
	digits, _, _ := bytes.Cut(rest, []byte(","))
	n, err := strconv.Atoi(string(digits))
	return n, err == nil
}

// newMessage is a message as services send them, with three metadata and, if keys > 0, one of so many
// keys.
func newMessage(seq, keys int) *message.Message {
	msg := message.NewMessage(uuid.Must(uuid.NewV7()).String(), payload(seq))
	msg.Metadata["event"] = "order.placed"
	msg.Metadata["tenant"] = "t" + strconv.Itoa(seq%100)
	msg.Metadata["trace"] = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	if keys > 0 {
		outbox.WithKey(msg, "order-"+strconv.Itoa(seq*7919%keys))
	}
	return msg
}
