package deduptest

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"time"

	"github.com/millrace-go/millrace/dedup"
)

func oneWinner(s *suite) {
	got := s.race(200)
	if got[dedup.Claimed] != 1 || got[dedup.Busy] != 199 {
		s.Fatalf("verdicts: %v, want 1 Claimed and 199 Busy", got)
	}
}

func oneTakeOver(s *suite) {
	s.mustClaim("crashed", Lease, 1, 1)
	winners := 0
	s.until("taken over", func() bool { winners += s.race(50)[dedup.Claimed]; return winners > 0 })
	if winners != 1 {
		s.Fatalf("%d owners took over at once", winners)
	}
}

func repeatedClaim(s *suite) {
	s.mustClaim("a", long, 1, 1)
	s.mustClaim("a", long, 1, 1)
	s.mustAnswer("b", dedup.Busy)
}

func busyTellsRemaining(s *suite) {
	s.mustClaim("a", long, 1, 1)
	a := s.claim("b", long)
	if a.Verdict != dedup.Busy || a.Remaining <= 0 || a.Remaining > long {
		s.Fatalf("got %+v, want Busy with a remaining time of at most %s", a, long)
	}
}

func takeOver(s *suite) {
	s.mustClaim("crashed", Lease, 1, 1)
	if a := s.takeOver("b"); a.Fence != 2 || a.Attempts != 2 {
		s.Fatalf("take-over: got %+v, want fence 2 and 2 attempts", a)
	}
}

func zombie(s *suite) {
	s.mustClaim("zombie", Lease, 1, 1)
	s.takeOver("b")
	s.mustRenew("zombie", long, false)
	s.mustMark("zombie", "from the dead", long, dedup.Lost)
	s.mustRelease("zombie", true)
	s.mustClaim("b", long, 2, 2)
	s.mustMark("b", "good", long, dedup.Marked)
	s.mustMark("zombie", "from the dead", long, dedup.Lost)
	if a := s.claim("c", long); a.Verdict != dedup.Handled || string(a.Result) != "good" {
		s.Fatalf("the record says %+v", a)
	}
}

func renewedLease(s *suite) {
	s.mustClaim("a", Lease, 1, 1)
	s.mustRenew("a", long, true)
	end := time.Now().Add(2 * Lease)
	s.until("two leases have passed", func() bool {
		s.mustAnswer("b", dedup.Busy)
		return time.Now().After(end)
	})
	s.mustRenew("a", long, true)
}

func handled(s *suite) {
	s.mustClaim("a", long, 1, 1)
	result := "\x00\xff\xfe not text \r\n"
	s.mustMark("a", result, long, dedup.Marked)
	for _, owner := range []string{"a", "b"} {
		if a := s.claim(owner, long); a.Verdict != dedup.Handled || string(a.Result) != result {
			s.Fatalf("claim by %s: got %+v, want Handled with the result", owner, a)
		}
	}
	s.mustRenew("a", long, false)
	s.mustRelease("a", true)
	s.mustAnswer("b", dedup.Handled)
}

func doneTwice(s *suite) {
	s.mustClaim("a", long, 1, 1)
	s.mustMark("a", "r", long, dedup.Marked)
	s.mustMark("a", "r", long, dedup.Marked)
	s.mustMark("b", "other", long, dedup.Lost)
	s.mustAnswer("c", dedup.Handled)
}

func doneAfterRelease(s *suite) {
	s.mustClaim("a", long, 1, 1)
	s.mustRelease("a", false)
	s.mustMark("a", "", long, dedup.Lost)
	s.mustClaim("b", long, 2, 2)
}

func doneLate(s *suite) {
	s.mustClaim("slow", Lease, 1, 1)
	// The end of the lease is seen on a second key that is claimed after the first.
	other := s.key
	other.MessageID += "-clock"
	s.claimWith(other, s.request("x", Lease))
	s.until("the lease ended", func() bool {
		return s.claimWith(other, s.request("y", long)).Verdict == dedup.Claimed
	})
	s.mustMark("slow", "r", long, dedup.Marked)
	s.mustAnswer("b", dedup.Handled)
}

func recreated(s *suite) {
	s.mustMark("a", "r", long, dedup.Recreated)
	if a := s.claim("b", long); a.Verdict != dedup.Handled || string(a.Result) != "r" {
		s.Fatalf("got %+v, want Handled with the result", a)
	}
}

func releasedClaim(s *suite) {
	s.mustClaim("a", long, 1, 1)
	s.mustRelease("a", false)
	s.mustRenew("a", long, false)
	s.mustClaim("b", long, 2, 2)
}

func releasedFresh(s *suite) {
	s.mustClaim("a", long, 1, 1)
	s.mustRelease("a", true)
	s.mustClaim("b", long, 2, 1)
}

func foreignRelease(s *suite) {
	s.mustRelease("nobody", false)
	s.mustClaim("a", long, 1, 1)
	s.mustRelease("b", true)
	s.mustAnswer("b", dedup.Busy)
	s.mustClaim("a", long, 1, 1)
}

func reused(s *suite) {
	other := s.request("b", long)
	other.Digest = "another content"
	expect := func(when string) {
		s.Helper()
		if a := s.claimWith(s.key, other); a.Verdict != dedup.Reused {
			s.Fatalf("%s: got %+v, want Reused", when, a)
		}
	}
	s.mustClaim("a", long, 1, 1)
	expect("claimed")
	s.mustRelease("a", false)
	expect("released")
	s.mustClaim("a2", long, 2, 2)
	s.mustMark("a2", "", long, dedup.Marked)
	expect("done")
}

func noDigest(s *suite) {
	none := s.request("b", long)
	none.Digest = ""
	s.mustClaim("a", long, 1, 1)
	if a := s.claimWith(s.key, none); a.Verdict != dedup.Busy {
		s.Fatalf("got %+v, want Busy", a)
	}
	s.mustMark("a", "", long, dedup.Marked)
	if a := s.claimWith(s.key, none); a.Verdict != dedup.Handled {
		s.Fatalf("got %+v, want Handled", a)
	}
}

func twoConsumers(s *suite) {
	s.mustClaim("a", long, 1, 1)
	other := dedup.Key{Consumer: "shipping", MessageID: s.key.MessageID}
	if a := s.claimWith(other, s.request("b", long)); a.Verdict != dedup.Claimed || a.Fence != 1 {
		s.Fatalf("the other consumer: got %+v, want Claimed with fence 1", a)
	}
}

func strangeKeys(s *suite) {
	id := s.key.MessageID
	long := strings.Repeat("x", 5000)
	names := []string{"a", "a:b", "a:", ":", "a{b}", "{a}", " ", "a b", "a+b", "a%3Ab", "é", "\x00", "\xff",
		"*", "a\r\nb", "a!b", long, long + "y"}
	seen := 0
	for _, consumer := range names {
		for _, suffix := range names {
			key := dedup.Key{Consumer: consumer, MessageID: id + suffix}
			if a := s.claimWith(key, s.request("o", time.Minute)); a.Verdict != dedup.Claimed || a.Fence != 1 {
				s.Errorf("consumer %.20q, id %.20q: got %+v", consumer, suffix, a)
			}
			seen++
		}
	}
	if seen != len(names)*len(names) {
		s.Fatal("not every pair was tried")
	}
}

func forgotten(s *suite) {
	s.mustClaim("a", long, 1, 1)
	s.mustMark("a", "r", Lease, dedup.Marked)
	var a dedup.Answer
	s.until("forgotten", func() bool { a = s.claim("b", long); return a.Verdict == dedup.Claimed })
	if a.Fence != 1 || a.Attempts != 1 {
		s.Fatalf("got %+v, want a record begun anew", a)
	}
}

func renewedRecord(s *suite) {
	req := s.request("a", Lease)
	req.TTL = Lease
	// On a busy machine the record may be over before it is renewed: then it is begun again.
	s.until("renewed in time", func() bool {
		s.claimWith(s.key, req)
		ok, err := s.store.Renew(s.Context(), s.key, "a", long)
		if err != nil {
			s.Fatal(err)
		}
		return ok
	})
	end := time.Now().Add(2 * Lease)
	s.until("the first life of the record is over", func() bool {
		s.mustAnswer("b", dedup.Busy)
		return time.Now().After(end)
	})
	s.mustMark("a", "", long, dedup.Marked)
}

func largeResult(s *suite) {
	s.mustClaim("a", long, 1, 1)
	big := bytes.Repeat([]byte{0xa5}, dedup.MaxResult)
	if _, err := s.store.Done(s.Context(), s.key, "a", append(big, 0), long); !errors.Is(err, dedup.ErrResultTooLarge) {
		s.Fatalf("one byte more than allowed: got %v, want ErrResultTooLarge", err)
	}
	s.mustAnswer("b", dedup.Busy)
	s.mustMark("a", string(big), long, dedup.Marked)
	if a := s.claim("b", long); !bytes.Equal(a.Result, big) {
		s.Fatalf("%d bytes came back, want %d", len(a.Result), len(big))
	}
}

func wrongArguments(s *suite) {
	ctx := s.Context()
	refused := func(what string, err error) {
		s.Helper()
		if err == nil {
			s.Errorf("%s: accepted", what)
		}
	}
	ok := s.request("a", long)
	for what, key := range map[string]dedup.Key{
		"no consumer": {MessageID: "m"}, "no message id": {Consumer: "c"}, "nothing": {},
	} {
		_, err := s.store.Claim(ctx, key, ok)
		refused("claim with "+what, err)
		_, err = s.store.Renew(ctx, key, "a", long)
		refused("renew with "+what, err)
		_, err = s.store.Done(ctx, key, "a", nil, long)
		refused("done with "+what, err)
		refused("release with "+what, s.store.Release(ctx, key, "a", false))
	}
	for what, req := range map[string]dedup.Request{
		"no owner": {Lease: long, TTL: long}, "no lease": {Owner: "a", TTL: long},
		"a negative lease": {Owner: "a", Lease: -1, TTL: long}, "a life shorter than the lease": {Owner: "a", Lease: long, TTL: long - 1},
	} {
		_, err := s.store.Claim(ctx, s.key, req)
		refused("claim with "+what, err)
	}
	_, err := s.store.Done(ctx, s.key, "", nil, long)
	refused("done without an owner", err)
	_, err = s.store.Done(ctx, s.key, "a", nil, 0)
	refused("done for no time", err)
	s.mustClaim("a", long, 1, 1)
}

func endedContext(s *suite) {
	ctx, cancel := context.WithCancel(s.Context())
	cancel()
	if _, err := s.store.Claim(ctx, s.key, s.request("a", long)); !errors.Is(err, context.Canceled) {
		s.Fatalf("claim: got %v, want context.Canceled", err)
	}
	s.mustClaim("b", long, 1, 1)
}
