// Package deduptest holds the rules that every dedup.Store keeps. Run it against an implementation of
// your own; it needs the standard library alone.
package deduptest

import (
	"context"
	"crypto/rand"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/millrace-go/millrace/dedup"
)

// Lease is how long the claims of the suite last that are meant to end while it waits.
const Lease = 60 * time.Millisecond

// long is the leases and lives that are not to end while a rule looks; patience is how long it waits for
// what has to happen.
const (
	long     = 10 * time.Minute
	patience = time.Minute
)

// TestStore runs the rules, each as a subtest with a store of its own. The stores may share a server:
// no two rules use the same key.
func TestStore(t *testing.T, open func(t testing.TB) dedup.Store) {
	for _, r := range rules {
		t.Run(r.sentence, func(t *testing.T) {
			t.Parallel()
			r.check(&suite{T: t, store: open(t), key: dedup.Key{Consumer: "billing", MessageID: rand.Text()}})
		})
	}
}

var rules = []struct {
	sentence string
	check    func(*suite)
}{
	{"of 200 concurrent claims one is Claimed and the others are Busy", oneWinner},
	{"of 50 concurrent take-overs one is Claimed", oneTakeOver},
	{"a claim repeated by its owner is Claimed again and counts once", repeatedClaim},
	{"Busy tells how long the lease of the other lasts", busyTellsRemaining},
	{"a claim whose lease ended is taken over with a higher fence and one more attempt", takeOver},
	{"an owner who was taken over renews nothing, marks nothing and releases nothing", zombie},
	{"a renewed lease does not end", renewedLease},
	{"a done message is Handled for everybody, with its result byte for byte", handled},
	{"done twice is done once", doneTwice},
	{"done by an owner who released is Lost", doneAfterRelease},
	{"done after the end of the lease holds while nobody took over", doneLate},
	{"done on a forgotten record says Recreated and holds", recreated},
	{"a released claim is free at once and its attempts are kept", releasedClaim},
	{"a claim released fresh counts from one again while its fence goes on", releasedFresh},
	{"a release by another owner changes nothing", foreignRelease},
	{"another content under the same id is Reused in every state", reused},
	{"without a digest nothing is compared", noDigest},
	{"two consumers of one message have two records", twoConsumers},
	{"names and ids of any bytes and any length stay apart", strangeKeys},
	{"a record is forgotten when its time is over", forgotten},
	{"a record lives as long as its lease is renewed", renewedRecord},
	{"a result of 64 KiB is kept and a larger one refused", largeResult},
	{"wrong arguments are refused and change nothing", wrongArguments},
	{"a call with an ended context is an error", endedContext},
}

type suite struct {
	*testing.T
	store dedup.Store
	key   dedup.Key
}

func (s *suite) request(owner string, lease time.Duration) dedup.Request {
	return dedup.Request{Owner: owner, Lease: lease, TTL: max(lease, long), Digest: "content"}
}

func (s *suite) claim(owner string, lease time.Duration) dedup.Answer {
	s.Helper()
	return s.claimWith(s.key, s.request(owner, lease))
}

func (s *suite) claimWith(key dedup.Key, req dedup.Request) dedup.Answer {
	s.Helper()
	a, err := s.store.Claim(s.Context(), key, req)
	if err != nil {
		s.Fatalf("claim by %s: %v", req.Owner, err)
	}
	return a
}

func (s *suite) mustClaim(owner string, lease time.Duration, fence int64, attempts int) {
	s.Helper()
	a := s.claim(owner, lease)
	if a.Verdict != dedup.Claimed || a.Fence != fence || a.Attempts != attempts {
		s.Fatalf("claim by %s: got %+v, want Claimed with fence %d and %d attempts", owner, a, fence, attempts)
	}
}

func (s *suite) mustAnswer(owner string, want dedup.Verdict) {
	s.Helper()
	if a := s.claim(owner, long); a.Verdict != want {
		s.Fatalf("claim by %s: got %+v, want verdict %d", owner, a, want)
	}
}

func (s *suite) mustRenew(owner string, lease time.Duration, want bool) {
	s.Helper()
	if ok, err := s.store.Renew(s.Context(), s.key, owner, lease); err != nil || ok != want {
		s.Fatalf("renew by %s: got %v, %v, want %v", owner, ok, err, want)
	}
}

func (s *suite) mustMark(owner, result string, ttl time.Duration, want dedup.Mark) {
	s.Helper()
	if m, err := s.store.Done(s.Context(), s.key, owner, []byte(result), ttl); err != nil || m != want {
		s.Fatalf("done by %s: got %d, %v, want %d", owner, m, err, want)
	}
}

func (s *suite) mustRelease(owner string, fresh bool) {
	s.Helper()
	if err := s.store.Release(s.Context(), s.key, owner, fresh); err != nil {
		s.Fatalf("release by %s: %v", owner, err)
	}
}

// until asks again and again; stores are measured by their own clocks, so there is nothing to advance.
func (s *suite) until(what string, cond func() bool) {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.Context(), patience)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-ctx.Done():
			s.Fatalf("after %s still not: %s", patience, what)
		case <-tick.C:
		}
	}
}

// takeOver claims for owner as soon as the lease of another has ended.
func (s *suite) takeOver(owner string) (a dedup.Answer) {
	s.Helper()
	s.until("taken over by "+owner, func() bool {
		a = s.claim(owner, long)
		return a.Verdict == dedup.Claimed
	})
	return a
}

func (s *suite) concurrently(n int, do func(i int)) {
	var wg sync.WaitGroup
	start := make(chan struct{})
	for i := range n {
		wg.Go(func() { <-start; do(i) })
	}
	close(start)
	wg.Wait()
}

// race lets n owners claim at once and counts the verdicts.
func (s *suite) race(n int) map[dedup.Verdict]int {
	var mu sync.Mutex
	got := map[dedup.Verdict]int{}
	s.concurrently(n, func(i int) {
		a, err := s.store.Claim(s.Context(), s.key, s.request(fmt.Sprint("racer ", i), long))
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			s.Errorf("claim %d: %v", i, err)
		}
		got[a.Verdict]++
	})
	return got
}
