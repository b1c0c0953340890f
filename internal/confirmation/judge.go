package confirmation

import (
	"slices"
	"strconv"
	"time"

	"github.com/millrace-go/millrace/internal/meta"
)

// What follows decides, and stores nothing: it is what the outbox does in each of its databases, and what a
// model of it does in memory.

// Word is what a group said about a message, as the producer keeps it: one for each group.
type Word struct {
	Group   string
	Outcome Outcome
	Reason  string
	Sending int // that it answers
}

// whatever is the sending that a word answers which does not say: the latest one.
const whatever = 1<<31 - 1

// Word is what the producer keeps of a confirmation.
func (c Confirmation) Word() Word {
	w := Word{Group: c.Group, Outcome: c.Outcome, Reason: c.Reason, Sending: c.Sending}
	if w.Sending == 0 {
		w.Sending = whatever
	}
	return w
}

// Told is the sending that a consumer told of, 0 for none.
func Told(sending int) int {
	if sending == whatever {
		return 0
	}
	return sending
}

// Replaces reports whether a word takes the place of what its group had said before. The effect of a message
// that is done is there: nothing takes that back. Of two failures, that of the later sending counts.
func (w Word) Replaces(old Word) bool {
	return w.Outcome == Done || old.Outcome != Done && w.Sending >= old.Sending
}

// Sendings is how often a message has been sent. It is a part of what the producer keeps with it.
type Sendings struct {
	// Sends is how often it had been sent before the last time, FirstSent when that was for the first time, in
	// microseconds since 1970, or 0. Neither counts what came before a replay, and Sends no probes.
	Sends     int   `json:"sends,omitempty"`
	FirstSent int64 `json:"first_sent,omitempty"`
	// Sending numbers the sendings of all kinds: how many there were before the last one.
	Sending int `json:"sending,omitempty"`
}

// Attempts is how often it has been sent.
func (s Sendings) Attempts() int { return s.Sends + 1 }

// Latest is the number of the last sending.
func (s Sendings) Latest() int { return s.Sending + 1 }

// Again is what is kept of a message that is sent again. A probe is not counted.
func (s Sendings) Again(sentAt int64, counts bool) Sendings {
	s.Sending = max(s.Sending, s.Sends) + 1 // the number was that of the attempts once
	if s.FirstSent == 0 {
		s.FirstSent = sentAt
	}
	if counts {
		s.Sends++
	}
	return s
}

// Anew is what is kept of a message that somebody replays: it has all its attempts and its age again.
func (s Sendings) Anew() Sendings {
	return Sendings{Sending: max(s.Sending, s.Sends) + 1}
}

// Stamp writes into the metadata of a message what a consumer is to know.
func (s Sendings) Stamp(metadata map[string]string) {
	metadata[meta.Sending] = strconv.Itoa(s.Latest())
	if s.FirstSent == 0 {
		delete(metadata, meta.FirstSent)
		return
	}
	metadata[meta.FirstSent] = strconv.FormatInt(s.FirstSent/1000, 10)
}

// Answered is the sending that a message with this metadata came with, 0 if that cannot be known.
func Answered(metadata map[string]string) int {
	text, there := metadata[meta.Sending]
	if !there {
		return 1
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n >= whatever {
		return 0
	}
	return n
}

// Awaited is a message that was sent, and is to be confirmed.
type Awaited struct {
	Topic  string
	Groups []string // that have to confirm
	Sendings
	// SentAt is when it was sent the last time, in microseconds since 1970; Age is the time since then.
	SentAt      int64
	Age         time.Duration
	Deadline    time.Duration
	MaxAttempts int
	MaxAge      time.Duration
}

// SinceFirst is the time since it was sent for the first time.
func (a Awaited) SinceFirst() time.Duration {
	if a.FirstSent == 0 {
		return a.Age
	}
	return a.Age + time.Duration(a.SentAt-a.FirstSent)*time.Microsecond
}

// maxBackoff is how often Deadline is doubled.
const maxBackoff = 5

// Overdue is how long after its next sending a confirmation is overdue.
func Overdue(deadline time.Duration, s Sendings) time.Duration {
	return deadline << min(s.Sends, maxBackoff)
}

// Missing are the groups that have not said "done".
func (a Awaited) Missing(words []Word) (groups []string) {
	for _, g := range a.Groups {
		if !slices.ContainsFunc(words, func(w Word) bool { return w.Group == g && w.Outcome == Done }) {
			groups = append(groups, g)
		}
	}
	return groups
}

// Judge says whether it is over: Done if each group has said so, whatever copy it had; Failed, and why, if one
// gave up what was sent last. What one says of an earlier sending, which arrives after the message was sent
// again or replayed, ends nothing. Otherwise the answer is "".
func (a Awaited) Judge(words []Word) (Outcome, string) {
	if len(a.Missing(words)) == 0 {
		return Done, ""
	}
	for _, w := range words {
		if w.Outcome != Failed || w.Sending < a.Latest() || !slices.Contains(a.Groups, w.Group) {
			continue
		}
		why := "group " + strconv.Quote(w.Group) + " gave it up"
		if w.Reason != "" {
			why += ": " + w.Reason
		}
		return Failed, why
	}
	return "", ""
}
