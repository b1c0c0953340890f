package storetest

import (
	"fmt"
	"slices"
	"sync"

	"github.com/millrace-go/millrace/store"
)

var orderRules = []rule{
	{"a key with a stored message is closed: later ones are stored behind it, once", closedKey},
	{"of a key only the first can be taken, and the next when that is forgotten", oneAfterTheOther},
	{"a returned message keeps its place in its key", keepsItsPlace},
	{"other keys, and messages without one, do not wait", othersDoNotWait},
	{"when the last message is forgotten the key is open", keyOpens},
	{"a deferred message of a closed key waits for its turn", deferIntoClosedKey},
	{"a message appended while the last one is forgotten is not stuck, and keeps the order", appendAgainstLast},
}

func closedKey(s *suite) {
	s.put(s.keyed("m1", "k"), long)
	s.admit(s.keyed("m2", "k"), store.Behind)
	s.admit(s.keyed("m2", "k"), store.Stored)
	s.admit(s.keyed("m1", "k"), store.Stored)
	s.stats(store.Stats{Stored: 2, Blocked: 1})
}

func oneAfterTheOther(s *suite) {
	s.put(s.keyed("m1", "k"), 0)
	for _, id := range []string{"m3", "m2"} {
		e := s.keyed(id, "k")
		e.Attempts = 9 // it was never handled
		s.admit(e, store.Behind)
	}
	for i, id := range []string{"m1", "m3", "m2"} {
		e := s.takeOne(fmt.Sprint(i), id)
		if e.Attempts != 0 || string(e.Payload) != "payload of "+id {
			s.Fatalf("got %+v", e)
		}
		s.takeNone()
		s.mustForget(e, fmt.Sprint(i), true)
	}
	s.takeNone()
	s.stats(store.Stats{})
}

func keepsItsPlace(s *suite) {
	s.put(s.keyed("m1", "k"), 0)
	s.admit(s.keyed("m2", "k"), store.Behind)
	e := s.takeOne("a", "m1")
	s.mustReturn(e, "a", 0, true)
	e = s.takeOne("b", "m1")
	s.mustReturn(e, "b", long, true)
	s.takeNone()
	s.admit(s.keyed("m3", "k"), store.Behind)
}

func othersDoNotWait(s *suite) {
	s.put(s.keyed("m1", "k"), long)
	s.admit(s.keyed("m2", "k"), store.Behind)
	s.admit(s.keyed("o", "other"), store.Open)
	s.admit(s.message("none"), store.Open)
	s.put(s.keyed("o", "other"), 0)
	s.put(s.message("none"), 0)
	if got := s.take("a", 10, long); len(got) != 2 {
		s.Fatalf("took %v", ids(got))
	}
}

func keyOpens(s *suite) {
	s.put(s.keyed("m1", "k"), 0)
	e := s.takeOne("a", "m1")
	s.admit(s.keyed("m2", "k"), store.Behind)
	s.mustForget(e, "a", true)
	s.admit(s.keyed("m3", "k"), store.Behind)
	for _, id := range []string{"m2", "m3"} {
		s.mustForget(s.takeOne("b", id), "b", true)
	}
	s.admit(s.keyed("m4", "k"), store.Open)
}

func deferIntoClosedKey(s *suite) {
	s.put(s.keyed("m1", "k"), 0)
	s.put(s.keyed("m2", "k"), 0)
	s.mustForget(s.takeOne("a", "m1"), "a", true)
	s.mustForget(s.takeOne("a", "m2"), "a", true)
}

// appendAgainstLast: for each key one goroutine delivers messages as a broker would, one after the other,
// while others handle what is stored. A message that is Open is handled by the first.
func appendAgainstLast(s *suite) {
	const keys, each = 5, 4
	for round := range max(1, s.races/(keys*each)) {
		j := &journal{handled: map[string][]string{}}
		var brokers, handlers sync.WaitGroup
		ended := make(chan struct{})
		for k := range keys {
			key := fmt.Sprintf("r%dk%d", round, k)
			s.put(s.keyed(key+"-0", key), 0)
			brokers.Go(func() { s.deliverKey(j, key, each) })
		}
		for w := range 3 {
			handlers.Go(func() { s.handleStored(j, fmt.Sprint(w), ended) })
		}
		brokers.Wait()
		s.until("nothing is stuck", func() bool { return s.Failed() || j.total() == keys*(each+1) })
		close(ended)
		handlers.Wait()
		for key, got := range j.handled {
			if !slices.IsSorted(got) || len(got) != each+1 {
				s.Fatalf("key %s: handled %v", key, got)
			}
		}
	}
	s.stats(store.Stats{})
}

// journal is what was handled of each key, in this order.
type journal struct {
	mu      sync.Mutex
	handled map[string][]string
}

func (j *journal) note(e store.Entry) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.handled[e.OrderKey] = append(j.handled[e.OrderKey], e.MessageID)
}

func (j *journal) total() (n int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, got := range j.handled {
		n += len(got)
	}
	return n
}

// deliverKey delivers messages 1 to n of a key.
func (s *suite) deliverKey(j *journal, key string, n int) {
	for i := range n {
		e := s.keyed(fmt.Sprintf("%s-%d", key, i+1), key)
		switch a, err := s.Admit(s.Context(), e); {
		case err != nil:
			s.Error(err)
		case a == store.Open:
			j.note(e)
		case a != store.Behind:
			s.Errorf("admit %s: %v", e.MessageID, a)
		}
	}
}

// handleStored handles what is stored until the end.
func (s *suite) handleStored(j *journal, name string, ended <-chan struct{}) {
	for try := 0; ; try++ {
		select {
		case <-ended:
			return
		default:
		}
		owner := fmt.Sprint(name, " ", try)
		taken, _, err := s.Take(s.Context(), store.Take{Group: s.group, Owner: owner, Limit: 2, Lease: long})
		if err != nil {
			s.Error(err)
			return
		}
		for _, e := range taken {
			j.note(e)
			if held, err := s.Forget(s.Context(), e, owner); err != nil || !held {
				s.Errorf("forget %s: %v, %v", e.MessageID, held, err)
			}
		}
	}
}
