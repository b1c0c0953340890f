package millracetest

import (
	"context"
	"slices"
	"sync"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace"
)

// Recorder is a publisher that remembers which messages were published in transactions that committed.
//
//	rec := millracetest.Record(db, box.Publisher()) // give it to the code under test for its publisher
//	...
//	rec.Expect(t, "orders.placed", `{"id":1}`)
//
// In a test that never commits (RolledBack), a message counts as committed when the hooks of its Capture
// have run; All has it before.
type Recorder struct {
	db  millrace.DB
	pub message.Publisher

	mu        sync.Mutex
	all       map[string][]*message.Message
	committed map[string][]*message.Message
}

var _ message.Publisher = (*Recorder)(nil)

// Record returns a recorder for transactions of db that hands messages on to pub. If that is nil they go
// nowhere.
func Record(db millrace.DB, pub message.Publisher) *Recorder {
	return &Recorder{db: db, pub: pub, all: map[string][]*message.Message{}, committed: map[string][]*message.Message{}}
}

// Publish implements message.Publisher. A message whose context carries no transaction of the recorder's
// database counts as committed at once.
func (r *Recorder) Publish(topic string, msgs ...*message.Message) error {
	if r.pub != nil {
		if err := r.pub.Publish(topic, msgs...); err != nil {
			return err
		}
	}
	for _, m := range msgs {
		kept := m.Copy()
		kept.Payload = slices.Clone(m.Payload)
		r.keep(r.all, topic, kept)
		err := millrace.AfterCommitOrNow(m.Context(), func(context.Context) error {
			r.keep(r.committed, topic, kept)
			return nil
		}, millrace.For(r.db), millrace.Name("millracetest.Recorder"))
		if err != nil {
			return err
		}
	}
	return nil
}

func (r *Recorder) keep(in map[string][]*message.Message, topic string, m *message.Message) {
	r.mu.Lock()
	defer r.mu.Unlock()
	in[topic] = append(in[topic], m)
}

// Close does nothing: the publisher is the caller's.
func (r *Recorder) Close() error { return nil }

// Committed lists copies of the messages that were published to the topic in transactions that committed,
// in the order of the commits.
func (r *Recorder) Committed(topic string) []*message.Message {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.committed[topic])
}

// All lists copies of all messages that were published to the topic, also in transactions that are open
// or were rolled back.
func (r *Recorder) All(topic string) []*message.Message {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.all[topic])
}

// Expect fails the test unless the payloads are those of Committed.
func (r *Recorder) Expect(t testing.TB, topic string, payloads ...string) {
	t.Helper()
	var got []string
	for _, m := range r.Committed(topic) {
		got = append(got, string(m.Payload))
	}
	if !slices.Equal(got, payloads) {
		t.Errorf("millracetest: committed on %q: %q, want %q", topic, got, payloads)
	}
}
