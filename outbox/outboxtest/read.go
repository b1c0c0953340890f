package outboxtest

import (
	"bytes"
	"errors"
	"fmt"
	"time"

	"github.com/millrace-go/millrace/outbox"
)

var readRules = []rule{
	{"a read with nothing in flight returns what is there in order", func(s *suite) {
		pos := s.insert("k", "1", "2", "3")
		wantAll(s, "rows", s.ready(), pos)
		wantAll(s, "rows with empty sets", positions(s.read(outbox.Read{Exclude: []int64{}, BusyKeys: []string{}})), pos)
	}},
	{"a row comes as it was committed", func(s *suite) {
		body := []byte{0, 255, 'x', '\'', '\\', '"', '{', 0}
		s.Insert(Entry{ID: `id "1"\`, Topic: `top,"ic\`, Key: `k'"{},\`, Body: body, Meta: map[string]string{"a": `1"ü`, "b": ""}})
		rows := s.read(outbox.Read{Topics: []string{`top,"ic\`}})
		want(s, "rows", len(rows), 1)
		r := rows[0]
		s.must(r.Err)
		want(s, "id", r.ID, `id "1"\`)
		want(s, "topic", r.Topic, `top,"ic\`)
		want(s, "key", r.Key, `k'"{},\`)
		want(s, "metadata", r.Metadata["a"], `1"ü`)
		_, there := r.Metadata["b"]
		want(s, "empty metadata is there", there, true)
		want(s, "attempts", r.Attempts, 0)
		want(s, "payload is the same", bytes.Equal(r.Payload, body), true)
		want(s, "size counts", r.Size >= len(body), true)
		if age := time.Since(r.CreatedAt); age < -time.Hour || age > time.Hour {
			s.Errorf("created %v ago", age)
		}
	}},
	{"what was read is the reader's own", func(s *suite) {
		s.Insert(Entry{ID: "1", Topic: "orders", Body: []byte("body"), Meta: map[string]string{"a": "1"}})
		first := s.read(outbox.Read{})[0]
		first.Metadata["a"], first.Payload[0] = "changed", 'x'
		again := s.read(outbox.Read{})[0]
		want(s, "metadata", again.Metadata["a"], "1")
		want(s, "payload", string(again.Payload), "body")
	}},
	{"a read returns the lanes and topics asked for", func(s *suite) {
		pos := s.Insert(
			Entry{ID: "1", Topic: "orders", Lane: 1}, Entry{ID: "2", Topic: "orders", Lane: 2},
			Entry{ID: "3", Topic: "bills", Lane: 1}, Entry{ID: "4", Topic: "order", Lane: 1})
		wantAll(s, "rows", positions(s.read(outbox.Read{Lanes: []int{1}})), pos[:1])
		wantAll(s, "rows", positions(s.read(outbox.Read{Lanes: []int{1, 2}})), pos[:2])
		wantAll(s, "rows", positions(s.read(outbox.Read{Topics: []string{"bills", "orders"}})), pos[:3])
		want(s, "rows of no lane", len(s.read(outbox.Read{Lanes: []int{}})), 0)
		want(s, "rows of no topic", len(s.read(outbox.Read{Topics: []string{}})), 0)
	}},
	{"what is in flight and what is of a busy key stays away", func(s *suite) {
		a := s.insert("a", "a1", "a2")
		b := s.insert("b", "b1", "b2")
		none := s.insert("", "n1", "n2")
		wantAll(s, "rows", positions(s.read(outbox.Read{Exclude: []int64{a[0], none[0], 1 << 40}})), []int64{a[1], b[0], b[1], none[1]})
		wantAll(s, "rows", positions(s.read(outbox.Read{BusyKeys: []string{"a", `c"{,`}})), []int64{b[0], b[1], none[0], none[1]})
		wantAll(s, "no key is never busy", positions(s.read(outbox.Read{BusyKeys: []string{"a", "b"}})), none)
	}},
	{"what is in flight in front hides nothing behind it", func(s *suite) {
		var ids []string
		for i := range 60 {
			ids = append(ids, fmt.Sprint("id", i))
		}
		pos := s.insert("k", ids...)
		wantAll(s, "rows", positions(s.read(outbox.Read{Exclude: pos[:50], MaxRows: 5})), pos[50:55])
	}},
	{"a read is bounded by rows", func(s *suite) {
		var entries []Entry
		for i := range 200 {
			entries = append(entries, Entry{ID: fmt.Sprint(i), Topic: "orders", Lane: i % 50})
		}
		pos := s.Insert(entries...)
		wantAll(s, "rows", positions(s.read(outbox.Read{MaxRows: 7})), pos[:7])
		wantAll(s, "rows", positions(s.read(outbox.Read{MaxRows: 120})), pos[:120])
	}},
	{"a read is full although one lane has all the rows", func(s *suite) {
		var ids []string
		for i := range 300 {
			ids = append(ids, fmt.Sprint("id", i))
		}
		pos := s.insert("k", ids...)
		wantAll(s, "rows", positions(s.read(outbox.Read{MaxRows: 250, Topics: []string{"orders", "bills"}})), pos[:250])
	}},
	{"a read is bounded by bytes but never empty for them", func(s *suite) {
		pos := s.Insert(
			Entry{ID: "1", Topic: "orders", Body: make([]byte, 5000)}, Entry{ID: "2", Topic: "orders", Body: make([]byte, 500)},
			Entry{ID: "3", Topic: "orders", Body: make([]byte, 500)}, Entry{ID: "4", Topic: "orders", Body: make([]byte, 500)})
		wantAll(s, "one that is too large", positions(s.read(outbox.Read{MaxBytes: 1000})), pos[:1])
		wantAll(s, "what fits", positions(s.read(outbox.Read{MaxBytes: 1100, Exclude: pos[:1]})), pos[1:3])
	}},
	{"a row that cannot be decoded comes with its error", func(s *suite) {
		pos := s.Insert(Entry{ID: "1", Topic: "orders", Err: errors.New("broken")}, Entry{ID: "2", Topic: "orders"})
		rows := s.read(outbox.Read{})
		wantAll(s, "rows", positions(rows), pos)
		want(s, "the first has an error", rows[0].Err != nil, true)
		want(s, "id", rows[0].ID, "1")
		s.must(rows[1].Err)
	}},
	{"a delayed row is invisible until promoted when due", func(s *suite) {
		held := s.holder("a")
		pos := s.Insert(
			Entry{ID: "1", Topic: "later", Key: "k", Delay: 30 * time.Millisecond}, Entry{ID: "2", Topic: "orders", Key: "k"},
			Entry{ID: "3", Topic: "never", Key: "k", Delay: time.Hour})
		wantAll(s, "a delayed message does not hold its key", s.ready(), pos[1:2])
		topics, err := s.Store.Topics(s.ctx)
		s.must(err)
		wantAll(s, "topics", topics.Ready, []string{"orders"})
		s.soon("it becomes due", func() bool {
			p := s.promote(held)
			if p.Ready == 0 && (p.Next <= 0 || p.Next > time.Second) {
				s.Fatalf("next is due in %v", p.Next)
			}
			return p.Ready == 1
		})
		wantAll(s, "rows", positions(s.read(outbox.Read{Topics: []string{"later"}})), pos[:1])
		p := s.promote(held)
		want(s, "promoted again", p.Ready, 0)
		if p.Next < 50*time.Minute || p.Next > time.Hour {
			s.Errorf("the last is due in %v", p.Next)
		}
	}},
	{"nothing is due where nothing waits", func(s *suite) {
		held := s.holder("a")
		s.insert("k", "1")
		want(s, "promotion", s.promote(held), outbox.Promotion{})
	}},
	{"only the holder promotes", func(s *suite) {
		old, current := s.overtaken()
		s.Insert(Entry{ID: "1", Topic: "orders", Key: "k", Delay: time.Microsecond})
		s.soon("it is due", func() bool {
			want(s, "promoted under an old epoch", s.promote(old).Ready, 0)
			return s.promote(current).Ready == 1
		})
	}},
	{"topics are those of ready rows", func(s *suite) {
		s.Insert(Entry{ID: "1", Topic: "b", Lane: 7}, Entry{ID: "2", Topic: "a", Lane: 1}, Entry{ID: "3", Topic: "b", Lane: 2},
			Entry{ID: "4", Topic: "B", Lane: 2}, Entry{ID: "5", Topic: "later", Delay: time.Hour})
		topics, err := s.Store.Topics(s.ctx)
		s.must(err)
		wantAll(s, "topics", topics.Ready, []string{"B", "a", "b"})
	}},
}
