package storetest

import (
	"crypto/rand"
	"fmt"
	"slices"
	"testing"

	"github.com/millrace-go/millrace/store"
)

// Damage changes what the store has written of a message beside its payload, wherever the message is, so that
// it cannot be read. Mend takes the change back: it needs every byte to be where it was.
type Damage func(t testing.TB, group, messageID string, mend bool)

// TestUnreadable runs the rules about messages that cannot be read: damaged ones, or ones that a later version
// has written. It is for stores that write messages down.
func TestUnreadable(t *testing.T, open func(t testing.TB) store.Store, damage Damage) {
	for _, r := range []struct {
		sentence string
		check    func(*suite, Damage)
	}{
		{"a message that cannot be read hides no other, and becomes a dead letter", unreadableMessage},
		{"the next message of a key comes after one that cannot be read", unreadableOfKey},
		{"a message that cannot be read and is dead already is not dead twice", unreadableDead},
		{"a letter that cannot be read hides no other", unreadableLetter},
		{"a letter that cannot be read is replayed as it is, and can be discarded", unreadableDecided},
		{"a letter that cannot be read is replayed edited only with all of its metadata", unreadableEdited},
	} {
		t.Run(r.sentence, func(t *testing.T) {
			t.Parallel()
			r.check(&suite{T: t, Store: open(t), group: "billing-" + rand.Text()}, damage)
		})
	}
}

// takeAround takes what is due, and checks which messages could not be read.
func (s *suite) takeAround(want string, unreadable ...string) {
	s.Helper()
	var got, aside []string
	s.until("all is taken or set aside", func() bool {
		taken, next, err := s.Take(s.Context(), store.Take{Group: s.group, Owner: rand.Text(), Limit: 10, Lease: long,
			OnUnreadable: func(id string, err error) {
				if aside = append(aside, id); err == nil {
					s.Errorf("%s: no error", id)
				}
			}})
		if err != nil {
			s.Fatal(err)
		}
		got = append(got, ids(taken)...)
		return next != 0
	})
	slices.Sort(got)
	if fmt.Sprint(got) != want || len(aside) != len(unreadable) {
		s.Fatalf("took %v, want %s; set aside %v, want %v", got, want, aside, unreadable)
	}
}

// onlyLetter is the one dead letter.
func (s *suite) onlyLetter() store.Letter {
	s.Helper()
	all := s.list(store.Filter{}, 0, 10)
	if len(all) != 1 {
		s.Fatalf("%d letters", len(all))
	}
	l, err := s.Get(s.Context(), s.group, all[0].ID)
	if err != nil {
		s.Fatal(err)
	}
	return l
}

func unreadableMessage(s *suite, damage Damage) {
	for _, id := range []string{"a", "damaged", "z"} {
		s.put(s.message(id), 0)
	}
	damage(s.T, s.group, "damaged", false)
	s.takeAround("[a z]", "damaged")
	s.stats(store.Stats{Stored: 2, Held: 2, Dead: 1})
	s.admit(s.message("damaged"), store.Buried)

	l := s.onlyLetter()
	if l.Unreadable == nil || l.Reason != store.ReasonUnreadable || l.Error == "" || l.MessageID == "" || string(l.Payload) != "payload of damaged" {
		s.Fatalf("got %+v", l)
	}
	damage(s.T, s.group, "damaged", true)
	l = s.onlyLetter()
	if l.Unreadable != nil || l.MessageID != "damaged" || l.Metadata["name"] != "value of damaged" {
		s.Fatalf("mended: %+v", l)
	}
	s.decide(store.Replayed, l.ID)
	s.takeOne("a", "damaged")
}

func unreadableOfKey(s *suite, damage Damage) {
	s.put(s.keyed("m1", "k"), 0)
	s.admit(s.keyed("m2", "k"), store.Behind)
	damage(s.T, s.group, "m1", false)
	s.takeAround("[m2]", "m1")
	s.stats(store.Stats{Stored: 1, Held: 1, Dead: 1})
}

func unreadableDead(s *suite, damage Damage) {
	s.put(s.message("m"), 0)
	damage(s.T, s.group, "m", false)
	first := s.bury("m")
	s.takeAround("[]", "m")
	s.stats(store.Stats{Dead: 1})
	if l := s.onlyLetter(); l.ID != first.ID || l.Reason != first.Reason || l.Unreadable != nil {
		s.Fatalf("got %+v, want %+v", l, first)
	}
}

func unreadableLetter(s *suite, damage Damage) {
	for _, id := range []string{"a", "damaged", "z"} {
		s.bury(id)
	}
	damage(s.T, s.group, "damaged", false)
	all := s.list(store.Filter{Reason: "unknown_customer"}, 0, 10)
	if len(all) != 3 || all[0].MessageID != "a" || all[2].MessageID != "z" || all[0].Unreadable != nil || all[2].Unreadable != nil {
		s.Fatalf("listed %+v", all)
	}
	l := all[1]
	if l.Unreadable == nil || l.MessageID != "damaged" || l.Topic != "orders" || l.Group != s.group || l.ID == 0 || l.At.IsZero() || l.Size == 0 {
		s.Fatalf("got %+v", l)
	}
	if got := s.listedIDs(store.Filter{MessageID: "damaged", Topic: "orders"}); got != "[damaged]" {
		s.Fatalf("listed %s", got)
	}
	l, err := s.Get(s.Context(), s.group, l.ID)
	if err != nil || l.Unreadable == nil || string(l.Payload) != "payload of damaged" {
		s.Fatalf("got %+v, %v", l, err)
	}
}

func unreadableDecided(s *suite, damage Damage) {
	s.put(s.message("m"), 0)
	damage(s.T, s.group, "m", false)
	s.takeAround("[]", "m")
	first := s.onlyLetter()
	s.decide(store.Replayed, first.ID)
	s.stats(store.Stats{Stored: 1, Due: 1})
	s.takeAround("[]", "m") // nothing has been mended
	second := s.onlyLetter()
	if second.ID == first.ID || second.Unreadable == nil {
		s.Fatalf("got %+v after %+v", second, first)
	}
	s.decide(store.Replayed, second.ID)
	damage(s.T, s.group, "m", true)
	e := s.takeOne("a", "m")
	if e.Metadata["name"] != "value of m" || e.Topic != "orders" || string(e.Payload) != "payload of m" {
		s.Fatalf("mended: %+v", e)
	}
	s.mustForget(e, "a", true)
	s.bury("m")
	damage(s.T, s.group, "m", false)
	s.decide(store.Discarded, s.onlyLetter().ID)
	if got := s.listedIDs(store.Filter{}); got != "[]" {
		s.Fatalf("still listed: %s", got)
	}
}

func unreadableEdited(s *suite, damage Damage) {
	id := s.bury("m").ID
	damage(s.T, s.group, "m", false)
	if _, err := store.ReplayEdited(s.Context(), s, s.group, id, store.Edit{Payload: []byte("mended")}, "ann", "mended"); err == nil {
		s.Fatal("metadata that nobody has read was dropped")
	}
	newID, err := store.ReplayEdited(s.Context(), s, s.group, id, store.Edit{Metadata: map[string]string{"name": "mended"}}, "ann", "mended")
	if err != nil {
		s.Fatal(err)
	}
	e := s.takeOne("a", newID)
	if string(e.Payload) != "payload of m" || e.Metadata["name"] != "mended" || e.Metadata[store.MetaReplayOf] != "m" || e.Topic != "orders" {
		s.Fatalf("got %+v", e)
	}
}
