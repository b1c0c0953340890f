package outboxtest

import (
	"bytes"
	"slices"
	"time"

	"github.com/millrace-go/millrace/outbox"
)

var settleRules = []rule{
	{"a settle deletes the rows that it names", func(s *suite) {
		held := s.holder("a")
		pos := s.insert("k", "1", "2", "3")
		v := s.settle(held, ref(pos[0], "1"), ref(pos[2], "3"))
		wantAll(s, "done", v.Done, []int64{pos[0], pos[2]})
		want(s, "lost and gone", len(v.Lost)+len(v.Gone), 0)
		wantAll(s, "waiting", s.waiting(), pos[1:2])
	}},
	{"a settle of many lanes is one call", func(s *suite) {
		held := s.holder("a")
		var entries []Entry
		for lane := range outbox.Lanes {
			entries = append(entries, Entry{ID: string(rune('A' + lane)), Topic: "orders", Lane: lane})
		}
		pos := s.Insert(entries...)
		var refs []outbox.Ref
		for i, p := range pos {
			refs = append(refs, ref(p, entries[i].ID))
		}
		wantAll(s, "done", s.settle(held, refs...).Done, pos)
		want(s, "waiting", len(s.waiting()), 0)
	}},
	{"a settle of nothing says which lanes are lost", func(s *suite) {
		old, _ := s.overtaken()
		want(s, "lost", len(s.settle(old).Lost), outbox.Lanes)
	}},
	{"a position with another id is gone and stays", func(s *suite) {
		held := s.holder("a")
		pos := s.insert("k", "1", "2")
		v := s.settle(held, ref(pos[0], "before the crash"), ref(pos[1], "2"), ref(1<<40, "3"))
		wantAll(s, "gone", v.Gone, []int64{pos[0], 1 << 40})
		wantAll(s, "done", v.Done, pos[1:])
		wantAll(s, "waiting", s.waiting(), pos[:1])
	}},
	{"what was settled before is gone", func(s *suite) {
		held := s.holder("a")
		pos := s.insert("k", "1")
		wantAll(s, "done", s.settle(held, ref(pos[0], "1")).Done, pos)
		v := s.settle(held, ref(pos[0], "1"))
		wantAll(s, "gone", v.Gone, pos)
		want(s, "done again", len(v.Done), 0)
	}},
	{"a settle with an old epoch deletes nothing", func(s *suite) {
		old, current := s.overtaken()
		pos := s.insert("k", "1", "2")
		lane := outbox.Lane("k")
		v := s.settle(map[int]outbox.Grant{lane: old[lane]}, ref(pos[0], "1"), ref(pos[1], "2"))
		wantAll(s, "lost", v.Lost, []int{lane})
		want(s, "done and gone", len(v.Done)+len(v.Gone), 0)
		wantAll(s, "waiting", s.waiting(), pos)
		wantAll(s, "done by the holder", s.settle(current, ref(pos[0], "1")).Done, pos[:1])
	}},
	{"a lane that is lost does not hold up the others", func(s *suite) {
		old, current := s.overtaken()
		pos := s.Insert(Entry{ID: "1", Topic: "orders", Lane: 1}, Entry{ID: "2", Topic: "orders", Lane: 2})
		v := s.settle(map[int]outbox.Grant{1: old[1], 2: current[2]}, ref(pos[0], "1"), ref(pos[1], "2"))
		wantAll(s, "lost", v.Lost, []int{1})
		wantAll(s, "done", v.Done, pos[1:])
		wantAll(s, "waiting", s.waiting(), pos[:1])
	}},
	{"a row of a lane without a grant is not settled", func(s *suite) {
		held := s.holder("a")
		pos := s.Insert(Entry{ID: "1", Topic: "orders", Lane: 1})
		v := s.settle(map[int]outbox.Grant{2: held[2]}, ref(pos[0], "1"))
		want(s, "done and gone", len(v.Done)+len(v.Gone), 0)
		wantAll(s, "waiting", s.waiting(), pos)
	}},
	{"what is to be remembered is moved by the settle, whole, and the rest deleted", func(s *suite) {
		held := s.holder("a")
		body := bytes.Repeat([]byte{0, 1, 2, 255}, 5000)
		pos := s.Insert(
			Entry{ID: "1", Topic: "orders", Body: body},
			Entry{ID: "2", Topic: "orders", Key: "k", Body: body, Meta: map[string]string{"m": "v"}, After: outbox.Keep},
			Entry{ID: "3", Topic: "bills", Body: []byte("x"), After: outbox.AwaitConfirmation},
			Entry{ID: "4", Topic: "orders", After: outbox.Keep})
		want(s, "sent before the settle", len(s.Sent()), 0)
		v := s.settle(held, ref(pos[0], "1"), ref(pos[1], "2"), ref(pos[2], "3"), ref(pos[3], "another id"))
		wantAll(s, "done", v.Done, pos[:3])
		wantAll(s, "waiting", s.waiting(), pos[3:])
		sent := s.Sent()
		slices.SortFunc(sent, func(a, b Sent) int { return int(a.Pos - b.Pos) })
		want(s, "sent", len(sent), 2)
		kept, awaiting := sent[0], sent[1]
		want(s, "id", kept.ID, "2")
		want(s, "position", kept.Pos, pos[1])
		want(s, "lane", kept.Lane, outbox.Lane("k"))
		want(s, "topic", kept.Topic, "orders")
		want(s, "key", kept.Key, "k")
		want(s, "metadata", kept.Metadata["m"], "v")
		want(s, "payload is the same", bytes.Equal(kept.Payload, body), true)
		want(s, "policy", kept.After, outbox.Keep)
		want(s, "it is kept for an hour", kept.Expires > 50*time.Minute && kept.Expires <= time.Hour && kept.Due == 0, true)
		want(s, "id", awaiting.ID, "3")
		want(s, "policy", awaiting.After, outbox.AwaitConfirmation)
		want(s, "it is overdue in an hour", awaiting.Due > 50*time.Minute && awaiting.Due <= time.Hour && awaiting.Expires == 0, true)
		want(s, "gone", len(s.settle(held, ref(pos[1], "2")).Gone), 1)
		want(s, "sent", len(s.Sent()), 2)
	}},
	{"a settle with an old epoch moves nothing", func(s *suite) {
		old, _ := s.overtaken()
		pos := s.Insert(Entry{ID: "1", Topic: "orders", After: outbox.Keep})
		s.settle(old, ref(pos[0], "1"))
		want(s, "sent", len(s.Sent()), 0)
		wantAll(s, "waiting", s.waiting(), pos)
	}},
	{"a row that somebody else has locked is left for later", func(s *suite) {
		if s.Lock == nil {
			return // the database has no locks of rows
		}
		held := s.holder("a")
		pos := s.insert("k", "1", "2", "3")
		refs := []outbox.Ref{ref(pos[0], "1"), ref(pos[1], "2"), ref(pos[2], "3")}
		unlock := s.Lock(pos[1])
		v := s.settle(held, refs...)
		unlock()
		wantAll(s, "done", v.Done, []int64{pos[0], pos[2]})
		want(s, "gone", len(v.Gone), 0)
		v = s.settle(held, refs...)
		wantAll(s, "done later", v.Done, pos[1:2])
	}},
}

var raceRules = []rule{
	{"a settle beside a take-over deletes all or nothing", func(s *suite) {
		lane := outbox.Lane("k")
		current := s.holder("r0")[lane]
		last := "r0"
		for round := range 20 {
			pos := s.insert("k", "a", "b", "c")
			refs := []outbox.Ref{ref(pos[0], "a"), ref(pos[1], "b"), ref(pos[2], "c")}
			next := "r" + string(rune('a'+round))
			s.must(s.Store.Join(s.ctx, next, long))
			taken := make(chan outbox.Grant, 1)
			go func() {
				s.Evict(last)
				grants, err := s.Store.Claim(s.ctx, next, outbox.Lanes)
				if err != nil {
					s.Error(err)
				}
				taken <- grant(grants, lane)
			}()
			v, err := s.Store.Settle(s.ctx, []outbox.Grant{current}, refs)
			s.must(err)
			before := current
			if current = <-taken; current.Epoch == 0 { // the claim skipped a lane that was being settled
				current = s.claim(next, outbox.Lanes)[lane]
			}
			want(s, "epoch", current.Epoch, before.Epoch+1)
			switch {
			case len(v.Lost) == 1 && len(v.Done) == 0:
				wantAll(s, "waiting", s.waiting(), pos)
			case len(v.Lost) == 0 && len(v.Done) == 3:
				want(s, "waiting", len(s.waiting()), 0)
			default:
				s.Fatalf("settled in part: %+v", v)
			}
			s.settle(map[int]outbox.Grant{lane: current}, refs...)
			want(s, "waiting", len(s.waiting()), 0)
			last = next
		}
	}},
}

func grant(grants []outbox.Grant, lane int) outbox.Grant {
	if i := slices.IndexFunc(grants, func(g outbox.Grant) bool { return g.Lane == lane }); i >= 0 {
		return grants[i]
	}
	return outbox.Grant{}
}
