package storetest

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/millrace-go/millrace/store"
)

var deadRules = []rule{
	{"a dead letter comes back byte for byte, with its reason and its history", letterByteForByte},
	{"a message that is dead already is not dead twice", deadOnce},
	{"letters are listed oldest first, by pages, without payloads", listed},
	{"a filter chooses by reason, topic, id and time", filtered},
	{"a replayed letter is due for its group alone, with no attempts and no history", replayed},
	{"a letter is replayed once, whoever else tries", replayedOnce},
	{"a replay of a message that is stored starts that copy anew, and its holder has lost it", replayOverStored},
	{"a replayed message of a closed key waits for its turn", replayIntoClosedKey},
	{"a discarded letter is gone for good", discarded},
	{"each decision leaves one audit record for each letter, with who and why", audited},
	{"a letter that dies again is another letter", diesAgain},
	{"Replay takes those that were there when it began, in batches, up to its limit", replayMany},
	{"a dry run changes nothing", dryRun},
	{"an edited replay is another message with a link to the first", editedReplay},
	{"a decision without who or why is refused", unsigned},
}

func (s *suite) letter(id string) store.Letter {
	return store.Letter{Entry: s.message(id), Reason: "unknown_customer", Error: "no such customer"}
}

// bury makes a message a dead letter and returns it as it is listed.
func (s *suite) bury(id string) store.Letter { s.Helper(); return s.buryLetter(s.letter(id)) }

func (s *suite) buryLetter(l store.Letter) store.Letter {
	s.Helper()
	if err := s.Put(s.Context(), l); err != nil {
		s.Fatal(err)
	}
	got := s.list(store.Filter{MessageID: l.MessageID}, 0, 10)
	if len(got) != 1 {
		s.Fatalf("%d letters of %q", len(got), l.MessageID)
	}
	return got[0]
}

func (s *suite) list(f store.Filter, after int64, limit int) []store.Letter {
	s.Helper()
	f.Group = s.group
	got, err := s.List(s.Context(), f, after, limit)
	if err != nil {
		s.Fatal(err)
	}
	return got
}

func (s *suite) listedIDs(f store.Filter) string {
	s.Helper()
	var all []string
	for _, l := range s.list(f, 0, 100) {
		all = append(all, l.MessageID)
	}
	return fmt.Sprint(all)
}

func (s *suite) decide(action store.Action, letters ...int64) []int64 {
	s.Helper()
	done, err := s.Decide(s.Context(), store.Decision{Group: s.group, Action: action, Letters: letters, Who: "ann", Why: "fixed"})
	if err != nil {
		s.Fatal(err)
	}
	return done
}

func letterByteForByte(s *suite) {
	l := s.letter("m \xff")
	l.Payload = []byte("\x00\xff payload")
	l.Metadata = map[string]string{"\xff": "\x00"}
	l.OrderKey = "k"
	l.Attempts = 5
	l.History = []store.Failure{{Attempt: 5, At: time.Unix(1e9, 0).UTC(), Reason: "r", Error: "e"}}
	before := time.Now().Add(-time.Minute)
	listed := s.buryLetter(l)
	got, err := s.Get(s.Context(), s.group, listed.ID)
	if err != nil {
		s.Fatal(err)
	}
	if got.At.Before(before) || got.At.After(time.Now().Add(time.Minute)) || got.Size != len(l.Payload) || got.ID != listed.ID {
		s.Fatalf("got %+v", got)
	}
	if !reflect.DeepEqual(got.Entry, l.Entry) || got.Reason != l.Reason || got.Error != l.Error {
		s.Fatalf("got %+v, want %+v", got, l)
	}
	if _, err := s.Get(s.Context(), s.group, listed.ID+1000); !errors.Is(err, store.ErrNotFound) {
		s.Fatalf("a letter that is not there: %v", err)
	}
	if _, err := s.Get(s.Context(), s.group+"2", listed.ID); !errors.Is(err, store.ErrNotFound) {
		s.Fatalf("a letter of another group: %v", err)
	}
}

func deadOnce(s *suite) {
	first := s.bury("m")
	again := s.letter("m")
	again.Reason = "another"
	if l := s.buryLetter(again); l.ID != first.ID || l.Reason != first.Reason {
		s.Fatalf("got %+v, want %+v", l, first)
	}
}

func listed(s *suite) {
	for i := range 5 {
		s.bury(fmt.Sprint("m", i))
	}
	var got []string
	after := int64(0)
	for {
		page := s.list(store.Filter{}, after, 2)
		if len(page) == 0 {
			break
		}
		for _, l := range page {
			if l.Payload != nil || l.Size == 0 {
				s.Fatalf("got %+v", l)
			}
			got = append(got, l.MessageID)
		}
		after = page[len(page)-1].ID
	}
	if fmt.Sprint(got) != "[m0 m1 m2 m3 m4]" {
		s.Fatalf("listed %v", got)
	}
}

func filtered(s *suite) {
	a := s.letter("a")
	b := s.letter("b")
	b.Reason, b.Topic = "timeout", "refunds"
	s.buryLetter(a)
	time.Sleep(5 * time.Millisecond) // the times of stores are as fine as milliseconds
	at := s.buryLetter(b).At
	for _, tc := range []struct {
		f    store.Filter
		want string
	}{
		{store.Filter{}, "[a b]"},
		{store.Filter{Reason: "timeout"}, "[b]"},
		{store.Filter{Topic: "orders"}, "[a]"},
		{store.Filter{MessageID: "b"}, "[b]"},
		{store.Filter{Reason: "timeout", Topic: "orders"}, "[]"},
		{store.Filter{Since: at}, "[b]"},
		{store.Filter{Until: at}, "[a]"},
		{store.Filter{Since: at.Add(-time.Hour), Until: at.Add(time.Hour)}, "[a b]"},
	} {
		if got := s.listedIDs(tc.f); got != tc.want {
			s.Errorf("%+v: %s, want %s", tc.f, got, tc.want)
		}
	}
}

func replayed(s *suite) {
	l := s.letter("m")
	l.Attempts, l.Returns, l.History = 5, 4, []store.Failure{{Attempt: 5, Reason: "r"}}
	id := s.buryLetter(l).ID
	other := s.letter("m")
	other.Group += "2"
	if err := s.Put(s.Context(), other); err != nil {
		s.Fatal(err)
	}
	if done := s.decide(store.Replayed, id); !slices.Equal(done, []int64{id}) {
		s.Fatalf("done %v", done)
	}
	e := s.takeOne("a", "m")
	s.anew(e)
	if string(e.Payload) != "payload of m" || e.Metadata["name"] != "value of m" || e.Topic != "orders" {
		s.Fatalf("got %+v", e)
	}
	if got := s.listedIDs(store.Filter{}); got != "[]" {
		s.Fatalf("still listed: %s", got)
	}
	if st, err := s.Stats(s.Context(), other.Group); err != nil || st != (store.Stats{Dead: 1}) {
		s.Fatalf("the other group: %+v, %v", st, err)
	}
}

func replayedOnce(s *suite) {
	var all []int64
	for i := range 10 {
		all = append(all, s.bury(fmt.Sprint("m", i)).ID)
	}
	var mu sync.Mutex
	got := map[int64]int{}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			done, err := s.Decide(s.Context(), store.Decision{Group: s.group, Action: store.Replayed, Letters: all, Who: "ann", Why: "fixed"})
			if err != nil {
				s.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			for _, id := range done {
				got[id]++
			}
		})
	}
	wg.Wait()
	for _, id := range all {
		if got[id] != 1 {
			s.Errorf("letter %d was replayed %d times", id, got[id])
		}
	}
	if taken := s.take("a", 100, long); len(taken) != len(all) {
		s.Errorf("took %v", ids(taken))
	}
}

func replayOverStored(s *suite) {
	e := s.message("m")
	e.Attempts, e.Returns, e.History = 5, 4, []store.Failure{{Attempt: 5, Reason: "r"}}
	s.put(e, 0)
	e = s.takeOne("a", "m")
	id := s.bury("m").ID
	s.decide(store.Replayed, id)
	s.mustForget(e, "a", false)
	s.anew(s.takeOne("b", "m"))
}

// anew checks that a message begins a new life: what is left of the former would be taken for its own.
func (s *suite) anew(e store.Entry) {
	s.Helper()
	if e.Attempts != 0 || e.Returns != 0 || len(e.History) > 0 {
		s.Fatalf("%d attempts, %d returns, history %v", e.Attempts, e.Returns, e.History)
	}
}

func replayIntoClosedKey(s *suite) {
	s.put(s.keyed("m1", "k"), 0)
	id := s.buryLetter(store.Letter{Entry: s.keyed("m0", "k"), Reason: "r"}).ID
	s.decide(store.Replayed, id)
	s.mustForget(s.takeOne("a", "m1"), "a", true)
	s.mustForget(s.takeOne("a", "m0"), "a", true)
}

func discarded(s *suite) {
	id := s.bury("m").ID
	if done := s.decide(store.Discarded, id, id+1000); !slices.Equal(done, []int64{id}) {
		s.Fatalf("done %v", done)
	}
	if done := s.decide(store.Discarded, id); len(done) != 0 {
		s.Fatalf("done twice: %v", done)
	}
	s.stats(store.Stats{})
}

func audited(s *suite) {
	a, b := s.bury("a").ID, s.bury("b").ID
	s.decide(store.Replayed, a)
	s.decide(store.Discarded, b, b+1000)
	s.decide(store.Discarded, b)
	got, err := s.Audit(s.Context(), s.group, 0, 10)
	if err != nil {
		s.Fatal(err)
	}
	if len(got) != 2 {
		s.Fatalf("%d records: %+v", len(got), got)
	}
	for i, want := range []store.Audit{
		{Action: store.Replayed, Letter: a, MessageID: "a"}, {Action: store.Discarded, Letter: b, MessageID: "b"},
	} {
		r := got[i]
		want.Group, want.Who, want.Why, want.ID, want.At = s.group, "ann", "fixed", r.ID, r.At
		if r != want || time.Since(r.At) > time.Hour || time.Since(r.At) < -time.Hour {
			s.Errorf("got %+v, want %+v", r, want)
		}
	}
	rest, err := s.Audit(s.Context(), s.group, got[0].ID, 10)
	if err != nil || len(rest) != 1 || rest[0].ID != got[1].ID {
		s.Fatalf("the second page: %+v, %v", rest, err)
	}
}

func diesAgain(s *suite) {
	first := s.bury("m")
	s.decide(store.Replayed, first.ID)
	s.mustForget(s.takeOne("a", "m"), "a", true)
	second := s.bury("m")
	if second.ID <= first.ID {
		s.Fatalf("the second death is letter %d, the first was %d", second.ID, first.ID)
	}
	if done := s.decide(store.Replayed, first.ID); len(done) != 0 {
		s.Fatal("the first death was replayed again")
	}
}

func replayMany(s *suite) {
	for i := range 7 {
		s.bury(fmt.Sprint("m", i))
	}
	order := store.Order{Filter: store.Filter{Group: s.group}, Limit: 5, Batch: 2, Who: "ann", Why: "fixed"}
	r, err := store.Replay(s.Context(), s, order)
	if err != nil || r.Done != 5 || r.Gone != 0 || len(r.Letters) != 5 {
		s.Fatalf("%+v, %v", r, err)
	}
	if got := s.listedIDs(store.Filter{}); got != "[m5 m6]" {
		s.Fatalf("left: %s", got)
	}
	order.Letters = r.Letters
	if again, err := store.Replay(s.Context(), s, order); err != nil || again.Done != 0 || again.Gone != 5 {
		s.Fatalf("%+v, %v", again, err)
	}
	order.Letters = nil
	if r, err := store.Discard(s.Context(), s, order); err != nil || r.Done != 2 {
		s.Fatalf("%+v, %v", r, err)
	}
	s.stats(store.Stats{Stored: 5, Due: 5})
}

func dryRun(s *suite) {
	id := s.bury("m").ID
	r, err := store.Replay(s.Context(), s, store.Order{Filter: store.Filter{Group: s.group}, DryRun: true})
	if err != nil || !slices.Equal(r.Letters, []int64{id}) || r.Done != 0 {
		s.Fatalf("%+v, %v", r, err)
	}
	s.stats(store.Stats{Dead: 1})
}

func editedReplay(s *suite) {
	id := s.bury("m").ID
	newID, err := store.ReplayEdited(s.Context(), s, s.group, id, store.Edit{Payload: []byte("mended")}, "ann", "typo")
	if err != nil {
		s.Fatal(err)
	}
	e := s.takeOne("a", newID)
	s.anew(e)
	if newID == "m" || string(e.Payload) != "mended" || e.Metadata[store.MetaReplayOf] != "m" || e.Metadata["name"] != "value of m" {
		s.Fatalf("got %+v", e)
	}
	s.stats(store.Stats{Stored: 1, Held: 1})
	got, err := s.Audit(s.Context(), s.group, 0, 10)
	if err != nil || len(got) != 1 || got[0].MessageID != "m" || got[0].NewID != newID || got[0].Why != "typo" {
		s.Fatalf("%+v, %v", got, err)
	}
	if _, err := store.ReplayEdited(s.Context(), s, s.group, id, store.Edit{}, "ann", "typo"); !errors.Is(err, store.ErrNotFound) {
		s.Fatal(err)
	}
}

func unsigned(s *suite) {
	id := s.bury("m").ID
	for _, d := range []store.Decision{
		{Group: s.group, Action: store.Replayed, Letters: []int64{id}},
		{Group: s.group, Action: store.Replayed, Letters: []int64{id}, Who: "ann"},
		{Group: s.group, Action: "other", Letters: []int64{id}, Who: "ann", Why: "x"},
		{Action: store.Replayed, Letters: []int64{id}, Who: "ann", Why: "x"},
	} {
		_, err := s.Decide(s.Context(), d)
		s.refused("decide", err)
	}
	_, err := store.Replay(s.Context(), s, store.Order{Filter: store.Filter{Group: s.group}})
	s.refused("replay", err)
	s.stats(store.Stats{Dead: 1})
}
