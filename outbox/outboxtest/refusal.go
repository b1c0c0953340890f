package outboxtest

import (
	"bytes"
	"time"

	"github.com/millrace-go/millrace/outbox"
)

var refusalRules = []rule{
	{"an attempt is counted once, from the one before", func(s *suite) {
		held := s.holder("a")
		pos := s.insert("k", "1")
		g := held[outbox.Lane("k")]
		for _, step := range []struct {
			attempt int
			ok      bool
		}{{2, false}, {1, true}, {1, false}, {2, true}, {3, true}, {3, false}} {
			ok, err := s.Store.Attempt(s.ctx, g, ref(pos[0], "1"), step.attempt)
			s.must(err)
			want(s, "counted", ok, step.ok)
		}
		want(s, "attempts", s.read(outbox.Read{})[0].Attempts, 3)
		ok, err := s.Store.Attempt(s.ctx, g, ref(pos[0], "another"), 4)
		s.must(err)
		want(s, "counted for another id", ok, false)
	}},
	{"a refused message waits for its back-off", func(s *suite) {
		held := s.holder("a")
		pos := s.insert("k", "1", "2")
		g := held[outbox.Lane("k")]
		f := refused(pos[0], "1", "k", 1)
		f.RetryIn = 30 * time.Millisecond
		ok, err := s.Store.Refuse(s.ctx, g, f)
		s.must(err)
		want(s, "refused", ok, true)
		wantAll(s, "ready", s.ready(), pos[1:])
		s.soon("the back-off is over", func() bool { return s.promote(held).Ready == 1 })
		rows := s.read(outbox.Read{})
		wantAll(s, "ready", positions(rows), pos)
		want(s, "attempts", rows[0].Attempts, 1)
	}},
	{"a refusal after an attempt that was counted before does not count twice", func(s *suite) {
		held := s.holder("a")
		pos := s.insert("k", "1")
		g := held[outbox.Lane("k")]
		for attempt := 1; attempt <= 3; attempt++ {
			ok, err := s.Store.Attempt(s.ctx, g, ref(pos[0], "1"), attempt)
			s.must(err)
			want(s, "counted", ok, true)
			f := refused(pos[0], "1", "k", attempt)
			f.RetryIn = 0
			ok, err = s.Store.Refuse(s.ctx, g, f)
			s.must(err)
			want(s, "refused", ok, true)
			s.soon("it is ready again", func() bool { return s.promote(held).Ready == 1 })
		}
		want(s, "attempts", s.read(outbox.Read{})[0].Attempts, 3)
	}},
	{"a refusal names its row by id", func(s *suite) {
		held := s.holder("a")
		pos := s.insert("k", "1")
		ok, err := s.Store.Refuse(s.ctx, held[outbox.Lane("k")], refused(pos[0], "another", "k", 1))
		s.must(err)
		want(s, "refused", ok, false)
		wantAll(s, "ready", s.ready(), pos)
	}},
	{"a parked message is dead, whole and with its reason", func(s *suite) {
		held := s.holder("a")
		s.Insert(Entry{ID: "1", Topic: "orders", Key: "k", Body: []byte{0, 1, 2}, Meta: map[string]string{"m": "v"}})
		r := s.read(outbox.Read{})[0]
		f := refused(r.Pos, "1", "k", 5)
		ok, err := s.Store.Park(s.ctx, held[outbox.Lane("k")], f)
		s.must(err)
		want(s, "parked", ok, true)
		want(s, "waiting", len(s.waiting()), 0)
		dead := s.Dead()
		want(s, "dead", len(dead), 1)
		d := dead[0]
		want(s, "id", d.ID, "1")
		want(s, "position", d.Pos, r.Pos)
		want(s, "topic", d.Topic, "orders")
		want(s, "key", d.Key, "k")
		want(s, "attempts", d.Attempts, 5)
		want(s, "payload is the same", bytes.Equal(d.Payload, []byte{0, 1, 2}), true)
		want(s, "metadata", d.Metadata["m"], "v")
		want(s, "reason", d.Why.Reason, f.Reason)
		want(s, "error", d.Why.Error, f.Error)
		want(s, "destination", d.Why.Destination, f.Destination)
		ok, err = s.Store.Park(s.ctx, held[outbox.Lane("k")], f)
		s.must(err)
		want(s, "parked twice", ok, false)
		want(s, "dead", len(s.Dead()), 1)
	}},
	{"the same id may die twice", func(s *suite) {
		held := s.holder("a")
		for range 2 {
			pos := s.insert("k", "1")
			ok, err := s.Store.Park(s.ctx, held[outbox.Lane("k")], refused(pos[0], "1", "k", 1))
			s.must(err)
			want(s, "parked", ok, true)
		}
		want(s, "dead", len(s.Dead()), 2)
	}},
	{"nothing is changed under an old epoch", func(s *suite) {
		old, current := s.overtaken()
		pos := s.insert("k", "1", "2", "3")
		lane := outbox.Lane("k")
		ok, err := s.Store.Refuse(s.ctx, current[lane], refused(pos[0], "1", "k", 1))
		s.must(err)
		want(s, "refused by the holder", ok, true)
		ok, err = s.Store.Hold(s.ctx, current[lane], "broker", []outbox.Ref{ref(pos[1], "2")})
		s.must(err)
		want(s, "held by the holder", ok, true)

		g := old[lane]
		for name, do := range map[string]func() (bool, error){
			"attempt": func() (bool, error) { return s.Store.Attempt(s.ctx, g, ref(pos[2], "3"), 1) },
			"refuse":  func() (bool, error) { return s.Store.Refuse(s.ctx, g, refused(pos[2], "3", "k", 1)) },
			"hold":    func() (bool, error) { return s.Store.Hold(s.ctx, g, "broker", []outbox.Ref{ref(pos[2], "3")}) },
			"lift":    func() (bool, error) { return s.Store.Lift(s.ctx, g, "broker", "k") },
			"park":    func() (bool, error) { return s.Store.Park(s.ctx, g, refused(pos[2], "3", "k", 1)) },
		} {
			ok, err := do()
			s.must(err)
			want(s, name, ok, false)
		}
		wantAll(s, "ready", s.ready(), pos[2:])
		wantAll(s, "waiting", s.waiting(), pos)
		want(s, "dead", len(s.Dead()), 0)
		want(s, "stops", len(s.stops()), 1)
	}},
}

func (s *suite) stops() []outbox.Stop {
	s.Helper()
	stops, err := s.Store.Stops(s.ctx, allLanes())
	s.must(err)
	return stops
}
