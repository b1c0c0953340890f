package storetest

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"reflect"
	"strings"
	"sync"
	"time"

	"github.com/millrace-go/millrace/store"
)

var delayedRules = []rule{
	{"a message that is not stored is Open and stays unstored", unknownIsOpen},
	{"a stored message is Stored for every copy, waiting or held", storedIsStored},
	{"a copy of a message that is dead is Buried, until that is replayed or discarded", deadIsBuried},
	{"a deferred message is due after its delay and not before", dueAfterDelay},
	{"a message comes back byte for byte", byteForByte},
	{"deferring twice keeps the first and only raises the attempts", deferOnlyRaises},
	{"deferring a copy of a message that is held leaves it with its holder", deferWhileHeld},
	{"of 20 who take at once each message goes to one", eachToOne},
	{"take hands out the longest due first, and no more than asked for", longestDueFirst},
	{"take tells when something more is due", tellsNext},
	{"a message whose lease ended is taken again", leaseEnds},
	{"a renewed lease does not end", renewed},
	{"an owner who was taken over begins, renews, returns and forgets nothing", zombie},
	{"an attempt is recorded when it begins, once", beginRecords},
	{"a returned message keeps the attempts and the history that it is returned with", returned},
	{"a forgotten message is gone for everybody", forgotten},
	{"two groups of one message have two entries", twoGroups},
	{"ids and keys of any bytes and any length stay apart", strangeNames},
	{"stats count what waits, what is due and what is held", countStats},
	{"wrong arguments are refused and change nothing", wrongArguments},
	{"a call with an ended context is an error", endedContext},
}

func unknownIsOpen(s *suite) {
	s.admit(s.message("m"), store.Open)
	s.admit(s.keyed("m", "k"), store.Open)
	s.takeNone()
	s.stats(store.Stats{})
}

func storedIsStored(s *suite) {
	s.put(s.message("m"), 0)
	s.admit(s.message("m"), store.Stored)
	e := s.takeOne("a", "m")
	s.admit(s.message("m"), store.Stored)
	s.mustReturn(e, "a", long, true)
	s.admit(s.message("m"), store.Stored)
	s.admit(s.message("other"), store.Open)
}

func deadIsBuried(s *suite) {
	replayed, discarded := s.bury("replayed").ID, s.bury("discarded").ID
	s.admit(s.message("replayed"), store.Buried)
	s.admit(s.keyed("discarded", "k"), store.Buried)
	s.decide(store.Replayed, replayed)
	s.decide(store.Discarded, discarded)
	s.admit(s.message("replayed"), store.Stored)
	s.admit(s.message("discarded"), store.Open)
	other := s.message("other")
	s.bury("other")
	other.Group += "2"
	s.admit(other, store.Open)
}

func dueAfterDelay(s *suite) {
	s.put(s.message("later"), long)
	begin := time.Now()
	s.put(s.message("soon"), 150*time.Millisecond)
	var got []store.Entry
	s.until("it is due", func() bool { got = s.take("a", 10, long); return len(got) > 0 })
	if d := time.Since(begin); d < 140*time.Millisecond || len(got) != 1 || got[0].MessageID != "soon" {
		s.Fatalf("took %v after %s", ids(got), d)
	}
}

func byteForByte(s *suite) {
	e := s.message("m")
	e.Payload = []byte("\x00\xff\xfe not text \r\n'\"\\")
	e.Metadata = map[string]string{"": "empty", "\xff": "\x00", "name": "", "ü": "ÿ\n", "{}": "$1 ?"}
	e.Topic = "orders \xff"
	e.OrderKey = "key \x00"
	e.Attempts = 3
	e.History = []store.Failure{{Attempt: 3, At: time.Unix(1e9, 0).UTC(), Reason: "r", Error: "text ü\n"}}
	s.put(e, 0)
	got := s.takeOne("a", "m")
	if !reflect.DeepEqual(got, e) {
		s.Fatalf("got %+v, want %+v", got, e)
	}
	empty := store.Entry{Group: s.group, MessageID: "empty"}
	s.put(empty, 0)
	if got := s.takeOne("a", "empty"); len(got.Payload) != 0 || len(got.Metadata) != 0 || got.Attempts != 0 || len(got.History) != 0 {
		s.Fatalf("got %+v", got)
	}
	large := s.message("large")
	large.Payload = bytes.Repeat([]byte("\x00large\xff"), 200_000)
	s.put(large, 0)
	if got := s.takeOne("a", "large"); !bytes.Equal(got.Payload, large.Payload) || !maps.Equal(got.Metadata, large.Metadata) {
		s.Fatal("a large payload comes back changed")
	}
}

func deferOnlyRaises(s *suite) {
	e := s.message("m")
	e.Attempts = 2
	s.put(e, 0)
	e.Attempts = 1
	s.put(e, long)
	s.stats(store.Stats{Stored: 1, Due: 1})
	e.Attempts = 4
	e.Payload = []byte("another")
	s.put(e, long)
	got := s.takeOne("a", "m")
	if got.Attempts != 4 || string(got.Payload) != "payload of m" {
		s.Fatalf("got %d attempts, %q", got.Attempts, got.Payload)
	}
}

func deferWhileHeld(s *suite) {
	s.put(s.message("m"), 0)
	e := s.takeOne("a", "m")
	copy := s.message("m")
	copy.Attempts = 1
	s.put(copy, 0)
	s.takeNone()
	s.mustRenew(e, "a", true)
	s.mustForget(e, "a", true)
	s.takeNone()
}

func eachToOne(s *suite) {
	const messages = 40
	for i := range messages {
		s.put(s.message(fmt.Sprint("m", i)), 0)
	}
	var mu sync.Mutex
	got := map[string]int{}
	var wg sync.WaitGroup
	end := time.Now().Add(patience)
	for i := range 20 {
		wg.Go(func() {
			for try := 0; time.Now().Before(end); try++ {
				taken, _, err := s.Take(s.Context(), store.Take{Group: s.group, Owner: fmt.Sprint(i, " ", try), Limit: 3, Lease: long})
				if err != nil {
					s.Error(err)
					return
				}
				mu.Lock()
				for _, e := range taken {
					got[e.MessageID]++
				}
				all := len(got) == messages
				mu.Unlock()
				if all {
					return
				}
			}
		})
	}
	wg.Wait()
	for id, n := range got {
		if n != 1 {
			s.Errorf("%s was taken %d times", id, n)
		}
	}
	if len(got) != messages {
		s.Errorf("%d of %d were taken", len(got), messages)
	}
}

func longestDueFirst(s *suite) {
	// The one that waits for its key keeps the others from being left out of a call: it is the first of the
	// group in the index of a database, where those who look at the group before end, and lock for a moment.
	s.put(s.keyed("held", "k"), 0)
	s.put(s.keyed("behind", "k"), 0)
	s.takeOne("x", "held")
	for _, id := range []string{"a", "b", "c"} {
		s.put(s.message(id), 0)
		time.Sleep(3 * time.Millisecond) // the times of stores are as fine as milliseconds
	}
	for _, want := range []string{"[a b]", "[c]", "[]"} {
		if got := ids(s.take("x", 2, long)); fmt.Sprint(got) != want {
			s.Fatalf("took %v, want %s", got, want)
		}
	}
}

func tellsNext(s *suite) {
	if _, next := s.taken("a", 10, long); next >= 0 {
		s.Fatalf("nothing is stored, and more is due in %s", next)
	}
	s.put(s.message("later"), long)
	if got, next := s.taken("a", 10, long); len(got) > 0 || next <= 0 || next > long {
		s.Fatalf("took %v, next in %s", ids(got), next)
	}
	s.put(s.message("now"), 0)
	if got, next := s.taken("a", 10, 2*long); len(got) != 1 || next <= 0 || next > long {
		s.Fatalf("took %v, next in %s", ids(got), next)
	}
	s.put(s.message("1"), 0)
	s.put(s.message("2"), 0)
	if got, next := s.taken("a", 1, long); len(got) != 1 || next != 0 {
		s.Fatalf("took %v, next in %s", ids(got), next)
	}
}

func leaseEnds(s *suite) {
	s.put(s.message("m"), 0)
	s.takeBriefly("crashed", "m")
	var got []store.Entry
	s.until("the lease ends", func() bool { got = s.take("b", 10, long); return len(got) > 0 })
	if got[0].MessageID != "m" || string(got[0].Payload) != "payload of m" {
		s.Fatalf("took %v", got)
	}
}

func renewed(s *suite) {
	s.put(s.message("m"), 0)
	e := s.takeBriefly("a", "m")
	s.mustRenew(e, "a", true)
	end := time.Now().Add(2 * Lease)
	s.until("two leases have passed", func() bool { s.takeNone(); return time.Now().After(end) })
	s.mustForget(e, "a", true)
}

func zombie(s *suite) {
	s.put(s.message("m"), 0)
	e := s.takeBriefly("zombie", "m")
	s.until("taken over", func() bool { return len(s.take("b", 10, long)) > 0 })
	s.mustRenew(e, "zombie", false)
	s.mustBegin(e, "zombie", 7, false)
	s.mustReturn(e, "zombie", 0, false)
	s.mustForget(e, "zombie", false)
	s.takeNone()
	s.mustBegin(e, "b", 1, true)
	s.mustReturn(e, "b", 0, true)
	s.mustForget(e, "b", false)
	s.mustForget(e, "", false)
	s.stats(store.Stats{Stored: 1, Due: 1})
}

func beginRecords(s *suite) {
	s.put(s.message("m"), 0)
	e := s.takeBriefly("crashed", "m")
	s.mustBegin(e, "crashed", 1, true)
	s.mustBegin(e, "crashed", 1, true)
	s.mustBegin(e, "crashed", 2, true)
	s.mustBegin(e, "crashed", 1, true)
	var got []store.Entry
	s.until("the lease ends", func() bool { got = s.take("b", 10, long); return len(got) > 0 })
	if got[0].Attempts != 2 {
		s.Fatalf("%d attempts, want 2", got[0].Attempts)
	}
}

func returned(s *suite) {
	s.put(s.message("m"), 0)
	e := s.takeOne("a", "m")
	s.mustBegin(e, "a", 5, true)
	e.Attempts, e.Returns = 4, 2
	e.History = []store.Failure{{Attempt: 4, At: time.Unix(1e9, 0).UTC(), Reason: "timeout", Error: "slow"}}
	e.Payload, e.Metadata = []byte("changed"), nil
	s.mustReturn(e, "a", 0, true)
	got := s.takeOne("b", "m")
	if got.Attempts != 4 || got.Returns != 2 || !reflect.DeepEqual(got.History, e.History) || string(got.Payload) != "payload of m" || len(got.Metadata) != 1 {
		s.Fatalf("got %+v", got)
	}
	s.mustReturn(e, "a", 0, false)
	s.mustReturn(got, "b", long, true)
	s.takeNone()
}

func forgotten(s *suite) {
	s.put(s.message("m"), 0)
	e := s.takeOne("a", "m")
	s.mustForget(e, "a", true)
	s.mustForget(e, "a", false)
	s.mustRenew(e, "a", false)
	s.mustReturn(e, "a", 0, false)
	s.admit(s.message("m"), store.Open)
	s.takeNone()
	s.stats(store.Stats{})
}

func twoGroups(s *suite) {
	mine, other := s.keyed("m", "k"), s.keyed("m", "k")
	other.Group += "2"
	s.put(mine, 0)
	s.admit(other, store.Open)
	s.put(other, long)
	e := s.takeOne("a", "m")
	s.mustForget(e, "a", true)
	s.admit(other, store.Stored)
	s.admit(mine, store.Open)
}

func strangeNames(s *suite) {
	long5k := strings.Repeat("x", 5000)
	names := []string{"m", "m ", " m", "M", "é", "e\u0301", "\x00", "\x00\x00", "\xff", "'", "%", "\\", "{m}", "m:m", long5k, long5k + "y", "sha256:m"}
	for _, name := range names {
		s.admit(s.keyed(name, name), store.Open)
		s.put(s.keyed(name, name), 0)
	}
	got := map[string]bool{}
	for _, e := range s.take("a", 100, long) {
		got[e.MessageID] = true
		if e.OrderKey != e.MessageID {
			s.Errorf("id %.20q has the key %.20q", e.MessageID, e.OrderKey)
		}
		s.mustForget(e, "a", true)
	}
	if len(got) != len(names) {
		s.Fatalf("%d of %d messages", len(got), len(names))
	}
}

func countStats(s *suite) {
	s.put(s.message("held"), 0)
	s.takeOne("a", "held")
	s.put(s.message("due"), 0)
	s.put(s.keyed("waits", "k"), long)
	s.admit(s.keyed("blocked", "k"), store.Behind)
	s.bury("dead")
	s.stats(store.Stats{Stored: 4, Due: 1, Held: 1, Blocked: 1, Dead: 1})
}

func wrongArguments(s *suite) {
	ctx := s.Context()
	for _, e := range []store.Entry{{}, {Group: s.group}, {MessageID: "m"}, {Group: strings.Repeat("g", 200), MessageID: "m"}, {Group: "a\nb", MessageID: "m"}} {
		_, err := s.Admit(ctx, e)
		s.refused("admit", err)
		s.refused("defer", s.Defer(ctx, e, 0))
		_, err = s.Renew(ctx, e, "a", long)
		s.refused("renew", err)
		_, err = s.Begin(ctx, e, "a", 1)
		s.refused("begin", err)
		_, err = s.Return(ctx, e, "a", 0)
		s.refused("return", err)
		_, err = s.Forget(ctx, e, "a")
		s.refused("forget", err)
		s.refused("put", s.Put(ctx, store.Letter{Entry: e}))
	}
	for _, t := range []store.Take{{}, {Group: s.group, Owner: "a", Limit: 1}, {Group: s.group, Owner: "a", Lease: long}, {Group: s.group, Limit: 1, Lease: long}} {
		_, _, err := s.Take(ctx, t)
		s.refused("take", err)
	}
	_, err := s.Stats(ctx, "")
	s.refused("stats", err)
	s.stats(store.Stats{})
}

func endedContext(s *suite) {
	ctx, cancel := context.WithCancel(s.Context())
	cancel()
	_, err := s.Admit(ctx, s.message("m"))
	s.refused("admit", err)
	s.refused("defer", s.Defer(ctx, s.message("m"), 0))
	_, _, err = s.Take(ctx, store.Take{Group: s.group, Owner: "a", Limit: 1, Lease: long})
	s.refused("take", err)
	s.refused("put", s.Put(ctx, store.Letter{Entry: s.message("m")}))
	s.stats(store.Stats{})
}
