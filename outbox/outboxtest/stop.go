package outboxtest

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/millrace-go/millrace/outbox"
)

// stopped refuses the first message of key k and stops it for the destination.
func (s *suite) stopped(g outbox.Grant, pos int64, id, destination string) {
	s.Helper()
	f := refused(pos, id, "k", 1)
	f.Destination = destination
	ok, err := s.Store.Refuse(s.ctx, g, f)
	s.must(err)
	want(s, "refused", ok, true)
}

func (s *suite) hold(g outbox.Grant, destination string, refs ...outbox.Ref) {
	s.Helper()
	ok, err := s.Store.Hold(s.ctx, g, destination, refs)
	s.must(err)
	want(s, "the lane is held", ok, true)
}

var stopRules = []rule{
	{"a stop is kept with the refusal that caused it", func(s *suite) {
		held := s.holder("a")
		pos := s.insert("k", "1")
		lane := outbox.Lane("k")
		s.stopped(held[lane], pos[0], "1", "broker")
		wantAll(s, "stops", s.stops(), []outbox.Stop{{Lane: lane, Destination: "broker", Key: "k", Pos: pos[0]}})
		other, err := s.Store.Stops(s.ctx, []int{(lane + 1) % outbox.Lanes})
		s.must(err)
		want(s, "stops of another lane", len(other), 0)
	}},
	{"a refusal stops nothing unless asked to, and never what has no key", func(s *suite) {
		held := s.holder("a")
		keyed, plain := s.insert("k", "1"), s.Insert(Entry{ID: "2", Topic: "orders", Lane: 5})
		f := refused(keyed[0], "1", "k", 1)
		f.Stop = false
		_, err := s.Store.Refuse(s.ctx, held[outbox.Lane("k")], f)
		s.must(err)
		_, err = s.Store.Refuse(s.ctx, held[5], refused(plain[0], "2", "", 1))
		s.must(err)
		want(s, "stops", len(s.stops()), 0)
		want(s, "ready", len(s.ready()), 0)
	}},
	{"rows behind a stop are held and others are not", func(s *suite) {
		held := s.holder("a")
		lane := outbox.Lane("k")
		pos := s.insert("k", "1", "2", "3")
		other := s.insert(sameLane("k"), "4")
		s.stopped(held[lane], pos[0], "1", "broker")
		s.hold(held[lane], "broker", ref(pos[1], "2"), ref(pos[2], "another id"), ref(other[0], "4"))
		wantAll(s, "ready", s.ready(), []int64{pos[2], other[0]})
	}},
	{"what is held stays so as long as the stop is there", func(s *suite) {
		held := s.holder("a")
		lane := outbox.Lane("k")
		pos := s.insert("k", "1", "2")
		s.stopped(held[lane], pos[0], "1", "broker")
		s.hold(held[lane], "broker", ref(pos[1], "2"))
		want(s, "promoted", s.promote(held).Ready, 0)
		want(s, "ready", len(s.ready()), 0)
	}},
	{"no row is held without a stop of that destination", func(s *suite) {
		held := s.holder("a")
		lane := outbox.Lane("k")
		pos := s.insert("k", "1", "2")
		s.stopped(held[lane], pos[0], "1", "broker")
		s.hold(held[lane], "another", ref(pos[1], "2"))
		wantAll(s, "ready", s.ready(), pos[1:])
	}},
	{"lifting a stop makes what it held ready", func(s *suite) {
		held := s.holder("a")
		lane := outbox.Lane("k")
		pos := s.insert("k", "1", "2", "3", "4")
		s.stopped(held[lane], pos[0], "1", "broker")
		s.stopped(held[lane], pos[1], "2", "another")
		s.hold(held[lane], "broker", ref(pos[2], "3"))
		s.hold(held[lane], "another", ref(pos[3], "4"))
		want(s, "ready", len(s.ready()), 0)
		ok, err := s.Store.Lift(s.ctx, held[lane], "broker", "k")
		s.must(err)
		want(s, "lifted", ok, true)
		wantAll(s, "ready", s.ready(), pos[2:3])
		want(s, "stops left", len(s.stops()), 1)
	}},
	{"a stop follows its key's last refusal", func(s *suite) {
		held := s.holder("a")
		lane := outbox.Lane("k")
		pos := s.insert("k", "1", "2")
		s.stopped(held[lane], pos[0], "1", "broker")
		s.stopped(held[lane], pos[1], "2", "broker")
		wantAll(s, "stops", s.stops(), []outbox.Stop{{Lane: lane, Destination: "broker", Key: "k", Pos: pos[1]}})
	}},
	{"parking lifts the stop that the message caused", func(s *suite) {
		held := s.holder("a")
		lane := outbox.Lane("k")
		pos := s.insert("k", "1", "2", "3")
		s.stopped(held[lane], pos[0], "1", "broker")
		s.hold(held[lane], "broker", ref(pos[1], "2"), ref(pos[2], "3"))
		ok, err := s.Store.Park(s.ctx, held[lane], refused(pos[0], "1", "k", 5))
		s.must(err)
		want(s, "parked", ok, true)
		want(s, "stops", len(s.stops()), 0)
		wantAll(s, "ready", s.ready(), pos[1:])
	}},
	{"parking another message of the key leaves the stop", func(s *suite) {
		held := s.holder("a")
		lane := outbox.Lane("k")
		pos := s.insert("k", "1", "2")
		s.stopped(held[lane], pos[0], "1", "broker")
		ok, err := s.Store.Park(s.ctx, held[lane], refused(pos[1], "2", "k", 5))
		s.must(err)
		want(s, "parked", ok, true)
		want(s, "stops", len(s.stops()), 1)
	}},
	{"a stop whose message is gone holds nothing", func(s *suite) {
		held := s.holder("a")
		lane := outbox.Lane("k")
		pos := s.insert("k", "1", "2", "3")
		s.stopped(held[lane], pos[0], "1", "broker")
		s.hold(held[lane], "broker", ref(pos[1], "2"), ref(pos[2], "3"))
		s.Remove(pos[0]) // as a settle does when its forwarder dies before it lifts the stop
		want(s, "stops", len(s.stops()), 0)
		want(s, "promoted", s.promote(held).Ready, 2)
		wantAll(s, "ready", s.ready(), pos[1:])
	}},
	{"a held key that is free hides behind none that is not", func(s *suite) {
		held := s.holder("a")
		var free []int64
		for i := range 5 {
			key := fmt.Sprint("key", i)
			pos := s.insert(key, fmt.Sprint("a", i), fmt.Sprint("b", i))
			f := refused(pos[0], fmt.Sprint("a", i), key, 1)
			_, err := s.Store.Refuse(s.ctx, held[outbox.Lane(key)], f)
			s.must(err)
			s.hold(held[outbox.Lane(key)], "broker", ref(pos[1], fmt.Sprint("b", i)))
			if i%2 == 0 {
				s.Remove(pos[0])
				free = append(free, pos[1])
			}
		}
		want(s, "promoted", s.promote(held).Ready, len(free))
		wantAll(s, "ready", s.ready(), free)
		stops := s.stops()
		slices.SortFunc(stops, func(a, b outbox.Stop) int { return cmp.Compare(a.Pos, b.Pos) })
		want(s, "stops", len(stops), 2)
	}},
}

// sameLane finds another key of the same lane.
func sameLane(key string) string {
	for i := 0; ; i++ {
		if other := fmt.Sprint("other", i); outbox.Lane(other) == outbox.Lane(key) {
			return other
		}
	}
}
