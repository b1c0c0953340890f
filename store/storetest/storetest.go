// Package storetest holds the rules that every store.Store keeps. Run it against an implementation of
// your own; it needs the standard library alone.
package storetest

import (
	"crypto/rand"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/millrace-go/millrace/store"
)

// Lease is how long the leases of the suite last that are meant to end while it waits.
const Lease = 100 * time.Millisecond

// long is the leases and delays that are not to end while a rule looks; patience is how long it waits for
// what has to happen.
const (
	long     = 10 * time.Minute
	patience = time.Minute
)

// TestStore runs the rules, each as a subtest. The stores may share their tables or their server: each
// rule has a group of its own. Races is how often the rules about races are tried; 0 = 50.
func TestStore(t *testing.T, open func(t testing.TB) store.Store, races int) {
	if races == 0 {
		races = 50
	}
	for _, r := range slices.Concat(delayedRules, orderRules, deadRules) {
		t.Run(r.sentence, func(t *testing.T) {
			t.Parallel()
			r.check(&suite{T: t, Store: open(t), group: "billing-" + rand.Text(), races: races})
		})
	}
}

type rule struct {
	sentence string
	check    func(*suite)
}

type suite struct {
	*testing.T
	store.Store
	group string
	races int
}

// message is a small message of the suite's group.
func (s *suite) message(id string) store.Entry {
	return store.Entry{Group: s.group, MessageID: id, Topic: "orders", Payload: []byte("payload of " + id),
		Metadata: map[string]string{"name": "value of " + id}}
}

// keyed is one with an order key.
func (s *suite) keyed(id, key string) store.Entry {
	e := s.message(id)
	e.OrderKey = key
	return e
}

func (s *suite) admit(e store.Entry, want store.Admission) {
	s.Helper()
	got, err := s.Admit(s.Context(), e)
	if err != nil {
		s.Fatal(err)
	}
	if got != want {
		s.Fatalf("admit %s: %v, want %v", e.MessageID, got, want)
	}
}

func (s *suite) put(e store.Entry, delay time.Duration) {
	s.Helper()
	if err := s.Defer(s.Context(), e, delay); err != nil {
		s.Fatal(err)
	}
}

// take takes what is due now.
func (s *suite) take(owner string, limit int, lease time.Duration) []store.Entry {
	s.Helper()
	taken, _ := s.taken(owner, limit, lease)
	return taken
}

// taken asks again while something is due: a call may leave out what another looks at in that moment. So the
// lease has to be long, or what was taken is due again.
func (s *suite) taken(owner string, limit int, lease time.Duration) (all []store.Entry, next time.Duration) {
	s.Helper()
	s.until("nothing is due, or the limit is reached", func() bool {
		var some []store.Entry
		some, next = s.takeOnce(owner, limit-len(all), lease)
		all = append(all, some...)
		return next != 0 || len(all) == limit
	})
	return all, next
}

func (s *suite) takeOnce(owner string, limit int, lease time.Duration) ([]store.Entry, time.Duration) {
	s.Helper()
	taken, next, err := s.Take(s.Context(), store.Take{Group: s.group, Owner: owner, Limit: limit, Lease: lease})
	if err != nil {
		s.Fatal(err)
	}
	return taken, next
}

// takeOne takes the one message that is due.
func (s *suite) takeOne(owner, id string) store.Entry {
	s.Helper()
	return s.alone(s.take(owner, 10, long), id)
}

// takeBriefly takes the one message that is due, for a lease that is meant to end while the rule waits. It may
// have ended when this returns; nobody has taken over then, so the owner still holds the message.
func (s *suite) takeBriefly(owner, id string) store.Entry {
	s.Helper()
	var got []store.Entry
	s.until("taken by "+owner, func() bool { got, _ = s.takeOnce(owner, 10, Lease); return len(got) > 0 })
	return s.alone(got, id)
}

func (s *suite) alone(got []store.Entry, id string) store.Entry {
	s.Helper()
	if len(got) != 1 || got[0].MessageID != id {
		s.Fatalf("took %v, want %s alone", ids(got), id)
	}
	return got[0]
}

func (s *suite) takeNone() {
	s.Helper()
	if got := s.take("nobody", 10, long); len(got) > 0 {
		s.Fatalf("took %v, want nothing", ids(got))
	}
}

func ids(es []store.Entry) []string {
	var all []string
	for _, e := range es {
		all = append(all, e.MessageID)
	}
	return all
}

// holds checks the answer of a call of an owner.
func (s *suite) holds(what string, held bool, err error, want bool) {
	s.Helper()
	if err != nil {
		s.Fatalf("%s: %v", what, err)
	}
	if held != want {
		s.Fatalf("%s: held %v, want %v", what, held, want)
	}
}

func (s *suite) mustForget(e store.Entry, owner string, want bool) {
	s.Helper()
	held, err := s.Forget(s.Context(), e, owner)
	s.holds("forget "+e.MessageID, held, err, want)
}

func (s *suite) mustReturn(e store.Entry, owner string, delay time.Duration, want bool) {
	s.Helper()
	held, err := s.Return(s.Context(), e, owner, delay)
	s.holds("return "+e.MessageID, held, err, want)
}

func (s *suite) mustBegin(e store.Entry, owner string, attempt int, want bool) {
	s.Helper()
	held, err := s.Begin(s.Context(), e, owner, attempt)
	s.holds("begin "+e.MessageID, held, err, want)
}

func (s *suite) mustRenew(e store.Entry, owner string, want bool) {
	s.Helper()
	held, err := s.Renew(s.Context(), e, owner, long)
	s.holds("renew "+e.MessageID, held, err, want)
}

func (s *suite) stats(want store.Stats) {
	s.Helper()
	got, err := s.Stats(s.Context(), s.group)
	if err != nil {
		s.Fatal(err)
	}
	if got != want {
		s.Fatalf("stats: %+v, want %+v", got, want)
	}
}

func (s *suite) until(what string, cond func() bool) {
	s.Helper()
	deadline := time.Now().Add(patience)
	for !cond() {
		if time.Now().After(deadline) {
			s.Fatalf("waited %s for: %s", patience, what)
		}
		time.Sleep(2 * time.Millisecond) // between two looks
	}
}

func (s *suite) refused(what string, err error) {
	s.Helper()
	if err == nil {
		s.Fatalf("%s: accepted", what)
	}
	if errors.Is(err, store.ErrSetup) {
		s.Fatalf("%s: %v", what, err)
	}
}
