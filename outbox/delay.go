package outbox

import (
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/ThreeDotsLabs/watermill/components/delay"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace/internal/meta"
)

// Reserved metadata by which a message tells the outbox what it wants. They end here.
const (
	metaDelay    = meta.Prefix + "delay"
	metaDueAt    = meta.Prefix + "due_at"
	metaSchedule = meta.Prefix + "schedule"
)

// maxDelay is about as long as every database can count.
const maxDelay = 100 * 365 * 24 * time.Hour

// WithDelay makes the message wait for d, from when it is inserted and by the database's clock, and
// returns the message. It does not hold up others of its key, and no order is promised between it and
// them. Zero removes the delay; a negative one is refused by Publish.
//
// The metadata of Watermill's components/delay do the same; WithDelay and WithDueAt go before them.
func WithDelay(msg *message.Message, d time.Duration) *message.Message {
	delete(msg.Metadata, metaDueAt)
	if d == 0 {
		delete(msg.Metadata, metaDelay)
		return msg
	}
	return reserve(msg, metaDelay, strconv.FormatInt(int64(d), 10))
}

// WithDueAt makes the message wait until t by the database's clock, and returns the message. The zero
// time removes the delay. It is otherwise like WithDelay; where both are called, the last one counts.
func WithDueAt(msg *message.Message, t time.Time) *message.Message {
	delete(msg.Metadata, metaDelay)
	if t.IsZero() {
		delete(msg.Metadata, metaDueAt)
		return msg
	}
	return reserve(msg, metaDueAt, strconv.FormatInt(t.UnixMicro(), 10))
}

// WithSchedule gives the message a name by which it can be cancelled or replaced as long as it waits,
// and returns the message. At most one message waits under a name. An empty name removes it.
func WithSchedule(msg *message.Message, name string) *message.Message {
	if name == "" {
		delete(msg.Metadata, metaSchedule)
		return msg
	}
	return reserve(msg, metaSchedule, name)
}

func reserve(msg *message.Message, name, value string) *message.Message {
	if msg.Metadata == nil {
		msg.Metadata = message.Metadata{}
	}
	msg.Metadata[name] = value
	return msg
}

// due is when a message may go: after a time, or at one, in microseconds; nil for what does not apply.
type due struct{ after, at *int64 }

func (d due) delayed() bool { return d.after != nil || d.at != nil }

// dueOf reads what a message says about its delay. Watermill writes both a duration, in full, and a time,
// cut to seconds: the duration counts.
func dueOf(m message.Metadata) (due, error) {
	if text := m[metaDelay]; text != "" {
		d, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return due{}, errors.New("delay is not a number")
		}
		return dueAfter(time.Duration(d))
	}
	if text := m[metaDueAt]; text != "" {
		at, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return due{}, errors.New("due time is not a number")
		}
		return dueAt(time.UnixMicro(at))
	}
	if text := m[delay.DelayedForKey]; text != "" {
		d, err := time.ParseDuration(text)
		if err != nil {
			return due{}, fmt.Errorf("metadata %s is not a duration", delay.DelayedForKey)
		}
		return dueAfter(max(d, 0)) // it is negative when it came from a time that has passed
	}
	if text := m[delay.DelayedUntilKey]; text != "" {
		at, err := time.Parse(time.RFC3339Nano, text)
		if err != nil {
			return due{}, fmt.Errorf("metadata %s is not a time", delay.DelayedUntilKey)
		}
		return dueAt(at)
	}
	return due{}, nil
}

func dueAfter(d time.Duration) (due, error) {
	switch {
	case d < 0:
		return due{}, fmt.Errorf("delay of %v is negative", d)
	case d > maxDelay:
		return due{}, fmt.Errorf("delay of %v is longer than %v", d, maxDelay)
	case d == 0:
		return due{}, nil
	}
	after := max(d.Microseconds(), 1)
	return due{after: &after}, nil
}

func dueAt(t time.Time) (due, error) {
	const last = 7000 // what every database can store, with room
	if year := t.UTC().Year(); year > last {
		return due{}, fmt.Errorf("due time is after the year %d", last)
	}
	at := max(t.UnixMicro(), 0)
	return due{at: &at}, nil
}
