// Package outboxtest holds the rules that every outbox.Store keeps, and a Store in memory for tests.
package outboxtest

import (
	"context"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace/outbox"
)

// Harness is one empty outbox under test. Its functions fail the test themselves.
type Harness struct {
	Store outbox.Store
	// Insert commits messages in one transaction, in this order, and returns their positions.
	Insert func(entries ...Entry) []int64
	// Waiting returns all rows of the outbox, ready or not, by position.
	Waiting func() []outbox.Row
	// Dead returns the parked messages in the order in which they were parked.
	Dead func() []Dead
	// Sent returns the messages that are remembered after they were settled, in that order.
	Sent func() []Sent
	// Evict forgets a replica, as a sweep does when its lease has ended.
	Evict func(replica string)
	// Remove deletes a row, as an operator may.
	Remove func(pos int64)
	// Pause pauses a topic or a destination, Resume ends that.
	Pause, Resume func(kind outbox.PauseKind, name string)
	// Cancel cancels the message that waits under a schedule name, in a transaction of its own, and
	// answers as Box.Cancel does.
	Cancel func(schedule string) error
	// Lock keeps a row locked, and its schedule name, as an open foreign transaction does. Nil if the
	// database has no locks of rows.
	Lock func(pos int64) (unlock func())
	// Confirm is the handler of confirmations, and Replay puts a dead message back; false: it did not.
	Confirm func(msg *message.Message) error
	Replay  func(id string) bool
}

// Run runs the rules. Each gets an outbox of its own from open.
func Run(t *testing.T, open func(t *testing.T) Harness) {
	for _, group := range [][]rule{leaseRules, readRules, pauseRules, markRules, settleRules, refusalRules, stopRules, confirmRules, raceRules, togetherRules} {
		for _, r := range group {
			t.Run(r.name, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				r.check(&suite{T: t, Harness: open(t), ctx: ctx})
			})
		}
	}
}

// rule is one sentence and how it is tried.
type rule struct {
	name  string
	check func(s *suite)
}

type suite struct {
	*testing.T
	Harness
	ctx context.Context
}

// long is a lease that does not end during a test.
const long = time.Minute

// must fails the test if err is not nil.
func (s *suite) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

// want fails the test unless two values are equal.
func want[T comparable](s *suite, what string, got, want T) {
	s.Helper()
	if got != want {
		s.Fatalf("%s: got %v, want %v", what, got, want)
	}
}

func wantAll[T comparable](s *suite, what string, got, want []T) {
	s.Helper()
	if !slices.Equal(got, want) {
		s.Fatalf("%s: got %v, want %v", what, got, want)
	}
}

// soon waits for a condition.
func (s *suite) soon(what string, cond func() bool) {
	s.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(40 * time.Second); !cond(); <-tick.C {
		if time.Now().After(deadline) {
			s.Fatalf("waited for: %s", what)
		}
	}
}

// holder registers a replica that claims all free lanes, and returns its grants by lane.
func (s *suite) holder(replica string) map[int]outbox.Grant {
	s.Helper()
	s.must(s.Store.Join(s.ctx, replica, long))
	return s.claim(replica, outbox.Lanes)
}

func (s *suite) claim(replica string, n int) map[int]outbox.Grant {
	s.Helper()
	grants, err := s.Store.Claim(s.ctx, replica, n)
	s.must(err)
	byLane := make(map[int]outbox.Grant, len(grants))
	for _, g := range grants {
		byLane[g.Lane] = g
	}
	return byLane
}

// overtaken returns the grants of a holder that vanished and whose lanes another one took over.
func (s *suite) overtaken() (old, current map[int]outbox.Grant) {
	s.Helper()
	old = s.holder("first")
	s.Evict("first")
	return old, s.holder("second")
}

// allLanes is every lane; read reads all that is ready.
func allLanes() []int {
	lanes := make([]int, outbox.Lanes)
	for i := range lanes {
		lanes[i] = i
	}
	return lanes
}

func (s *suite) read(q outbox.Read) []outbox.Row {
	s.Helper()
	if q.Lanes == nil {
		q.Lanes = allLanes()
	}
	if q.Topics == nil {
		q.Topics = []string{"orders"}
	}
	if q.MaxRows == 0 {
		q.MaxRows = 100
	}
	if q.MaxBytes == 0 {
		q.MaxBytes = 1 << 20
	}
	rows, err := s.Store.Read(s.ctx, q)
	s.must(err)
	return rows
}

// ready is the positions that a read of everything returns.
func (s *suite) ready() []int64 { s.Helper(); return positions(s.read(outbox.Read{})) }

func positions(rows []outbox.Row) []int64 {
	var out []int64
	for _, r := range rows {
		out = append(out, r.Pos)
	}
	return out
}

func (s *suite) waiting() []int64 { s.Helper(); return positions(s.Waiting()) }

// insert commits messages of one key, named by ids.
func (s *suite) insert(key string, ids ...string) []int64 {
	s.Helper()
	var entries []Entry
	for _, id := range ids {
		entries = append(entries, Entry{ID: id, Topic: "orders", Key: key, Body: []byte("payload of " + id)})
	}
	return s.Insert(entries...)
}

func (s *suite) promote(grants map[int]outbox.Grant) outbox.Promotion {
	s.Helper()
	p, err := s.Store.Promote(s.ctx, list(grants))
	s.must(err)
	return p
}

// settle settles one row and reports whether it was deleted.
func (s *suite) settle(grants map[int]outbox.Grant, refs ...outbox.Ref) outbox.Settled {
	s.Helper()
	v, err := s.Store.Settle(s.ctx, list(grants), refs)
	s.must(err)
	slices.Sort(v.Done)
	slices.Sort(v.Gone)
	slices.Sort(v.Lost)
	return v
}

func list(grants map[int]outbox.Grant) []outbox.Grant {
	var out []outbox.Grant
	for _, g := range grants {
		out = append(out, g)
	}
	return out
}

func ref(pos int64, id string) outbox.Ref { return outbox.Ref{Pos: pos, ID: id} }

func refused(pos int64, id, key string, attempt int) outbox.Refused {
	return outbox.Refused{
		Ref: ref(pos, id), Destination: "broker", Key: key, Attempt: attempt,
		Reason: "no_route", Error: "no queue is bound", RetryIn: time.Hour, Stop: true,
	}
}

func wantSurvey(s *suite, got, want outbox.Survey) {
	s.Helper()
	if got.Replicas != want.Replicas || got.FreeLanes != want.FreeLanes || !maps.Equal(got.Down, want.Down) {
		s.Fatalf("survey: got %+v, want %+v", got, want)
	}
}
