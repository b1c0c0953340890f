package outboxtest

import (
	"errors"
	"slices"
	"time"

	"github.com/millrace-go/millrace/outbox"
)

func (s *suite) mark(grants map[int]outbox.Grant, refs ...outbox.Ref) []int64 {
	s.Helper()
	marked, err := s.Store.Mark(s.ctx, list(grants), refs)
	s.must(err)
	slices.Sort(marked)
	return marked
}

// cancelled is the answer of a cancellation.
func (s *suite) cancelled(schedule string, answer error) {
	s.Helper()
	if err := s.Cancel(schedule); !errors.Is(err, answer) {
		s.Fatalf("cancel %s: got %v, want %v", schedule, err, answer)
	}
}

var markRules = []rule{
	{"only rows with a schedule name are cancellable", func(s *suite) {
		s.Insert(Entry{ID: "1", Topic: "orders"}, Entry{ID: "2", Topic: "orders", Schedule: "n"})
		rows := s.read(outbox.Read{})
		want(s, "without a name", rows[0].Cancellable, false)
		want(s, "with one", rows[1].Cancellable, true)
	}},
	{"a message that is cancelled before it is marked is not marked", func(s *suite) {
		held := s.holder("a")
		pos := s.Insert(Entry{ID: "1", Topic: "orders", Schedule: "n"}, Entry{ID: "2", Topic: "orders", Schedule: "m"})
		s.cancelled("n", nil)
		wantAll(s, "marked", s.mark(held, ref(pos[0], "1"), ref(pos[1], "2")), pos[1:])
		wantAll(s, "waiting", s.waiting(), pos[1:])
		s.cancelled("n", outbox.ErrNoSchedule)
	}},
	{"a message that is marked is not cancelled", func(s *suite) {
		held := s.holder("a")
		pos := s.Insert(Entry{ID: "1", Topic: "orders", Schedule: "n"})
		wantAll(s, "marked", s.mark(held, ref(pos[0], "1")), pos)
		s.cancelled("n", outbox.ErrTooLate)
		wantAll(s, "waiting", s.waiting(), pos)
	}},
	{"a message stays marked for the next holder", func(s *suite) {
		held := s.holder("a")
		pos := s.Insert(Entry{ID: "1", Topic: "orders", Schedule: "n"})
		wantAll(s, "marked", s.mark(held, ref(pos[0], "1")), pos)
		wantAll(s, "marked before", s.mark(held, ref(pos[0], "1")), pos)
		s.Evict("a")
		wantAll(s, "marked by the next", s.mark(s.holder("b"), ref(pos[0], "1")), pos)
		s.cancelled("n", outbox.ErrTooLate)
	}},
	{"a name is free again when its message is marked", func(s *suite) {
		held := s.holder("a")
		pos := s.Insert(Entry{ID: "1", Topic: "orders", Schedule: "n"})
		s.mark(held, ref(pos[0], "1"))
		next := s.Insert(Entry{ID: "2", Topic: "orders", Schedule: "n", Delay: time.Hour})
		wantAll(s, "done", s.settle(held, ref(pos[0], "1")).Done, pos)
		wantAll(s, "waiting", s.waiting(), next)
		s.cancelled("n", nil)
		want(s, "waiting", len(s.waiting()), 0)
	}},
	{"what is settled or parked leaves no name behind", func(s *suite) {
		held := s.holder("a")
		pos := s.Insert(Entry{ID: "1", Topic: "orders", Schedule: "n"}, Entry{ID: "2", Topic: "orders", Key: "k", Schedule: "m"})
		s.mark(held, ref(pos[0], "1"), ref(pos[1], "2"))
		s.settle(held, ref(pos[0], "1"))
		ok, err := s.Store.Park(s.ctx, held[outbox.Lane("k")], refused(pos[1], "2", "k", 1))
		s.must(err)
		want(s, "parked", ok, true)
		s.cancelled("n", outbox.ErrNoSchedule)
		s.cancelled("m", outbox.ErrNoSchedule)
		s.Insert(Entry{ID: "1", Topic: "orders", Schedule: "n"}, Entry{ID: "2", Topic: "orders", Schedule: "m"})
	}},
	{"nothing is marked under an old epoch, or under another id", func(s *suite) {
		old, current := s.overtaken()
		pos := s.Insert(Entry{ID: "1", Topic: "orders", Schedule: "n"})
		want(s, "marked under an old epoch", len(s.mark(old, ref(pos[0], "1"))), 0)
		want(s, "marked under another id", len(s.mark(current, ref(pos[0], "another"))), 0)
		want(s, "marked of a lane without a grant", len(s.mark(map[int]outbox.Grant{9: current[9]}, ref(pos[0], "1"))), 0)
		s.cancelled("n", nil)
	}},
	{"a row that somebody may be cancelling is left for later", func(s *suite) {
		if s.Lock == nil {
			return // the database has no locks of rows
		}
		held := s.holder("a")
		pos := s.Insert(Entry{ID: "1", Topic: "orders", Schedule: "n"}, Entry{ID: "2", Topic: "orders", Schedule: "m"})
		refs := []outbox.Ref{ref(pos[0], "1"), ref(pos[1], "2")}
		unlock := s.Lock(pos[0])
		marked := s.mark(held, refs...)
		unlock()
		wantAll(s, "marked", marked, pos[1:])
		wantAll(s, "marked later", s.mark(held, refs...), pos)
	}},
	{"a marked message keeps its mark through refusals", func(s *suite) {
		held := s.holder("a")
		pos := s.Insert(Entry{ID: "1", Topic: "orders", Key: "k", Schedule: "n"})
		s.mark(held, ref(pos[0], "1"))
		ok, err := s.Store.Refuse(s.ctx, held[outbox.Lane("k")], refused(pos[0], "1", "k", 1))
		s.must(err)
		want(s, "refused", ok, true)
		s.cancelled("n", outbox.ErrTooLate)
	}},
}
