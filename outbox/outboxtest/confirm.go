package outboxtest

import (
	"fmt"
	"strings"
	"time"

	"github.com/millrace-go/millrace/internal/confirmation"
	"github.com/millrace-go/millrace/internal/meta"
	"github.com/millrace-go/millrace/outbox"
)

// awaiting commits messages that billing and stock have to confirm within a time.
func (s *suite) awaiting(deadline time.Duration, ids ...string) {
	s.Helper()
	plan := outbox.Plan{
		After: outbox.AwaitConfirmation, Retention: time.Hour, Groups: []string{"billing", "stock"},
		Deadline: deadline, MaxAttempts: 2, MaxAge: time.Hour,
	}
	var entries []Entry
	for i, id := range ids {
		entries = append(entries, Entry{ID: id, Topic: "orders", Lane: i % outbox.Lanes, Body: []byte("payload of " + id), After: plan.After, Plan: plan})
	}
	s.Insert(entries...)
}

// send has the broker confirm what is ready, and returns it.
func (s *suite) send(grants map[int]outbox.Grant) []outbox.Row {
	s.Helper()
	rows := s.read(outbox.Read{})
	for _, r := range rows {
		want(s, "settled "+r.ID, len(s.settle(grants, r.Ref).Done), 1)
	}
	return rows
}

// hears has groups confirm a sending of a message.
func (s *suite) hears(outcome confirmation.Outcome, id string, sending int, groups ...string) {
	s.Helper()
	for _, group := range groups {
		msg, err := confirmation.Confirmation{ID: id, Group: group, Outcome: outcome, Reason: "r", Sending: sending}.Message()
		s.must(err)
		msg.SetContext(s.ctx)
		s.must(s.Confirm(msg))
	}
}

// alive has both groups confirm something else, now.
func (s *suite) alive() {
	s.Helper()
	s.hears(confirmation.Done, "something else", 1, "billing", "stock")
}

// again waits until a message is sent again, and returns the number of the sending.
func (s *suite) again(grants map[int]outbox.Grant, id string) int {
	s.Helper()
	var rows []outbox.Row
	s.soon(id+" is sent again", func() bool {
		s.promote(grants)
		rows = s.read(outbox.Read{})
		return len(rows) > 0
	})
	want(s, "messages", len(rows), 1)
	want(s, "id", rows[0].ID, id)
	want(s, "payload", string(rows[0].Payload), "payload of "+id)
	want(s, "sent", len(s.Sent()), 0)
	s.send(grants)
	return confirmation.Answered(rows[0].Metadata)
}

// is fails the test unless every message is in a state.
func (s *suite) is(state outbox.State, ids ...string) {
	s.Helper()
	states := map[string]outbox.State{}
	note := func(id string, state outbox.State) {
		if _, there := states[id]; there {
			s.Errorf("%s is in two states", id)
		}
		states[id] = state
	}
	for _, r := range s.Waiting() {
		note(r.ID, outbox.StateWaiting)
	}
	for _, r := range s.Sent() {
		note(r.ID, r.State)
	}
	for _, d := range s.Dead() {
		note(d.ID, outbox.StateDead)
	}
	for _, id := range ids {
		want(s, "state of "+id, states[id], state)
	}
}

// died is the reason and the text of a death.
func (s *suite) died(id, reason, text string) {
	s.Helper()
	s.is(outbox.StateDead, id)
	for _, d := range s.Dead() {
		if d.ID == id {
			want(s, "reason", d.Why.Reason, reason)
			want(s, "text of "+d.Why.Error, strings.Contains(d.Why.Error, text), true)
			want(s, "payload", string(d.Payload), "payload of "+id)
		}
	}
}

var confirmRules = []rule{
	{"a message is done when every group has said so", func(s *suite) {
		held := s.holder("a")
		s.awaiting(time.Hour, "1", "2")
		s.send(held)
		s.hears(confirmation.Done, "1", 1, "billing", "billing", "nobody asked")
		s.hears(confirmation.Done, "unknown", 1, "stock")
		s.is(outbox.StateSent, "1", "2")
		s.hears(confirmation.Done, "1", 1, "stock")
		s.is(outbox.StateDone, "1")
		s.hears(confirmation.Failed, "1", 1, "stock")
		s.is(outbox.StateDone, "1")
		s.is(outbox.StateSent, "2")
	}},
	{"a confirmation that overtakes the settle counts", func(s *suite) {
		held := s.holder("a")
		s.awaiting(time.Hour, "1", "2")
		s.hears(confirmation.Done, "1", 1, "billing", "stock")
		s.hears(confirmation.Failed, "2", 1, "stock")
		s.is(outbox.StateWaiting, "1", "2")
		s.send(held)
		s.is(outbox.StateDone, "1")
		s.died("2", outbox.ReasonFailed, "stock")
	}},
	{"a group that gives it up ends a message unless it was done there before", func(s *suite) {
		held := s.holder("a")
		s.awaiting(time.Hour, "1", "2")
		s.send(held)
		s.hears(confirmation.Done, "1", 1, "billing")
		s.hears(confirmation.Failed, "1", 1, "billing", "nobody asked")
		s.is(outbox.StateSent, "1")
		s.hears(confirmation.Failed, "2", 1, "billing")
		s.died("2", outbox.ReasonFailed, `"billing" gave it up: r`)
	}},
	{"a message that is overdue is sent again, and then dead", func(s *suite) {
		held := s.holder("a")
		s.awaiting(time.Millisecond, "1")
		s.send(held)
		s.alive()
		want(s, "sending", s.again(held, "1"), 2)
		s.alive()
		s.soon("it is dead", func() bool { s.promote(held); return len(s.Dead()) == 1 })
		s.died("1", outbox.ReasonUnconfirmed, "billing, stock after 2 attempts")
		want(s, "attempts", s.Dead()[0].Attempts, 2)
	}},
	{"what is confirmed is not sent again", func(s *suite) {
		held := s.holder("a")
		s.awaiting(time.Millisecond, "1")
		s.send(held)
		s.hears(confirmation.Done, "1", 1, "billing", "stock")
		want(s, "ready", s.promote(held).Ready, 0)
		s.is(outbox.StateDone, "1")
	}},
	{"a copy tells of its number and of the first time", func(s *suite) {
		held := s.holder("a")
		s.awaiting(time.Millisecond, "1")
		first := s.send(held)[0]
		want(s, "sending", confirmation.Answered(first.Metadata), 1)
		s.alive()
		s.soon("it is sent again", func() bool { s.promote(held); return len(s.Waiting()) == 1 })
		copied := s.read(outbox.Read{})[0]
		want(s, "sending", copied.Metadata[meta.Sending], "2")
		want(s, "it says when it was sent first", copied.Metadata[meta.FirstSent] != "", true)
		want(s, "it is a new row", copied.Pos > first.Pos, true)
	}},
	{"a failure ends what was sent last, and nothing that was sent since", func(s *suite) {
		held := s.holder("a")
		s.awaiting(time.Millisecond, "1")
		s.send(held)
		s.alive()
		want(s, "sending", s.again(held, "1"), 2)
		s.hears(confirmation.Failed, "1", 1, "billing")
		s.is(outbox.StateSent, "1")
		s.hears(confirmation.Failed, "1", 2, "billing")
		s.died("1", outbox.ReasonFailed, "billing")
	}},
	{"a failure without a number ends what was sent last", func(s *suite) {
		held := s.holder("a")
		s.awaiting(time.Millisecond, "1")
		s.send(held)
		s.alive()
		s.again(held, "1")
		s.hears(confirmation.Failed, "1", 0, "billing")
		s.died("1", outbox.ReasonFailed, "billing")
	}},
	{"a replay begins anew, but for its number and for who has confirmed", func(s *suite) {
		held := s.holder("a")
		s.awaiting(time.Millisecond, "1")
		s.send(held)
		s.hears(confirmation.Done, "1", 1, "stock")
		s.hears(confirmation.Failed, "1", 1, "billing")
		s.is(outbox.StateDead, "1")
		want(s, "replayed", s.Replay("1"), true)
		want(s, "dead", len(s.Dead()), 0)
		s.hears(confirmation.Failed, "1", 1, "billing")
		row := s.send(held)[0]
		want(s, "sending", confirmation.Answered(row.Metadata), 2)
		want(s, "its age begins anew", row.Metadata[meta.FirstSent], "")
		s.is(outbox.StateSent, "1")
		s.alive()
		want(s, "it has its attempts again", s.again(held, "1"), 3)
		s.hears(confirmation.Done, "1", 1, "billing")
		s.is(outbox.StateDone, "1")
	}},
	{"a group that is silent is probed with one message, and costs no attempts", func(s *suite) {
		held := s.holder("a")
		var ids []string
		for i := range 10 {
			ids = append(ids, fmt.Sprint("m", i))
		}
		s.awaiting(20*time.Millisecond, ids...)
		s.send(held)
		for range 3 { // more often than MaxAttempts
			s.soon("something is sent again", func() bool { return s.promote(held).Ready > 0 })
			want(s, "probes", len(s.send(held)), 1)
		}
		want(s, "dead", len(s.Dead()), 0)
		for _, id := range ids {
			s.hears(confirmation.Done, id, 1, "billing", "stock")
		}
		s.is(outbox.StateDone, ids...)
	}},
	{"a message that is too old is dead", func(s *suite) {
		held := s.holder("a")
		s.Insert(Entry{ID: "1", Topic: "orders", Body: []byte("payload of 1"), After: outbox.AwaitConfirmation, Plan: outbox.Plan{
			After: outbox.AwaitConfirmation, Groups: []string{"billing"}, Deadline: time.Millisecond, MaxAttempts: 1000, MaxAge: time.Millisecond,
		}})
		s.send(held)
		s.soon("it is dead", func() bool { s.promote(held); s.send(held); return len(s.Dead()) == 1 })
		s.died("1", outbox.ReasonUnconfirmed, "billing within 1ms")
	}},
}
