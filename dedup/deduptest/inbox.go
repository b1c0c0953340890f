package deduptest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/millrace-go/millrace/dedup"
)

// Inbox is an inbox with the transactions of its database.
type Inbox struct {
	dedup.Inbox
	// InTx runs fn in a transaction: committed if fn returns nil, else rolled back.
	InTx func(ctx context.Context, fn func(ctx context.Context) error) error
}

// TestInbox runs the rules of an inbox, each as a subtest. The inboxes may share a table: no two rules
// use the same key.
func TestInbox(t *testing.T, open func(t testing.TB) Inbox) {
	for _, r := range inboxRules {
		t.Run(r.sentence, func(t *testing.T) {
			r.check(&inboxSuite{T: t, Inbox: open(t), key: dedup.Key{Consumer: "billing", MessageID: rand.Text()}})
		})
	}
}

var inboxRules = []struct {
	sentence string
	check    func(*inboxSuite)
}{
	{"a message is new once and seen from then on", seenOnce},
	{"a message whose transaction was rolled back is new", rolledBackIsNew},
	{"a copy waits for the open transaction and has been seen when that commits", waitsForCommit},
	{"a copy waits for the open transaction and takes its place when that rolls back", waitsForRollback},
	{"a copy that waits gives up when its context ends", waitsNoLonger},
	{"of 20 concurrent transactions one has the effect, in spite of rollbacks", oneEffect},
	{"two consumers of one message both see it as new", twoInboxConsumers},
	{"ids of any bytes and any length stay apart", strangeIDs},
	{"outside of a transaction it is an error", outsideOfATransaction},
	{"an empty consumer or id is an error", emptyNames},
}

type inboxSuite struct {
	*testing.T
	Inbox
	key dedup.Key
}

var errRollback = errors.New("rolled back on purpose")

// see reports, in a transaction that ends with end, whether key was seen.
func (s *inboxSuite) see(key dedup.Key, end error) bool {
	s.Helper()
	seen, err := s.seen(key, end)
	if err != nil {
		s.Fatal(err)
	}
	return seen
}

func (s *inboxSuite) seen(key dedup.Key, end error) (seen bool, err error) {
	err = s.InTx(s.Context(), func(ctx context.Context) (err error) {
		if seen, err = s.Seen(ctx, key); err != nil {
			return err
		}
		return end
	})
	if !errors.Is(err, end) {
		return false, fmt.Errorf("got %w, want %w", err, end)
	}
	return seen, nil
}

func (s *inboxSuite) must(what string, got, want bool) {
	s.Helper()
	if got != want {
		s.Fatalf("%s: seen = %v, want %v", what, got, want)
	}
}

func seenOnce(s *inboxSuite) {
	s.must("first", s.see(s.key, nil), false)
	s.must("second", s.see(s.key, nil), true)
	s.must("third, rolled back", s.see(s.key, errRollback), true)
	s.must("fourth", s.see(s.key, nil), true)
}

func rolledBackIsNew(s *inboxSuite) {
	s.must("first", s.see(s.key, errRollback), false)
	s.must("second", s.see(s.key, nil), false)
	s.must("third", s.see(s.key, nil), true)
}

func waitsForCommit(s *inboxSuite)   { s.must("copy", s.copyDuring(nil), true) }
func waitsForRollback(s *inboxSuite) { s.must("copy", s.copyDuring(errRollback), false) }

// copyDuring has a copy come while a transaction is open that ends with end.
func (s *inboxSuite) copyDuring(end error) bool {
	s.Helper()
	type answer struct {
		seen bool
		err  error
	}
	answers := make(chan answer, 1)
	err := s.InTx(s.Context(), func(ctx context.Context) error {
		if seen, err := s.Seen(ctx, s.key); seen || err != nil {
			return fmt.Errorf("first: seen = %v, %w", seen, err)
		}
		go func() {
			seen, err := s.seen(s.key, nil)
			answers <- answer{seen, err}
		}()
		select {
		case a := <-answers:
			return fmt.Errorf("the copy did not wait: %+v", a)
		case <-time.After(100 * time.Millisecond):
			return end
		}
	})
	if !errors.Is(err, end) {
		s.Fatal(err)
	}
	select {
	case a := <-answers:
		if a.err != nil {
			s.Fatalf("the copy: %v", a.err)
		}
		return a.seen
	case <-time.After(patience):
		s.Fatal("the copy waits though the transaction has ended")
		return false
	}
}

func waitsNoLonger(s *inboxSuite) {
	err := s.InTx(s.Context(), func(ctx context.Context) error {
		if _, err := s.Seen(ctx, s.key); err != nil {
			return err
		}
		short, cancel := context.WithTimeout(s.Context(), 50*time.Millisecond)
		defer cancel()
		err := s.InTx(short, func(ctx context.Context) error { _, err := s.Seen(ctx, s.key); return err })
		if err == nil {
			return errors.New("the copy did not wait")
		}
		return nil
	})
	if err != nil {
		s.Fatal(err)
	}
	s.must("afterwards", s.see(s.key, nil), true)
}

func oneEffect(s *inboxSuite) {
	var effects atomic.Int64
	var wg sync.WaitGroup
	end := time.Now().Add(patience)
	for i := range 20 {
		wg.Go(func() {
			var err error
			for try := 0; time.Now().Before(end); try++ {
				fresh := false
				err = s.InTx(s.Context(), func(ctx context.Context) error {
					seen, err := s.Seen(ctx, s.key)
					if fresh = !seen; err == nil && fresh && (i+try)%3 == 0 {
						return errRollback
					}
					return err
				})
				if err == nil {
					if fresh {
						effects.Add(1)
					}
					return
				}
			}
			s.Errorf("a copy never came to an end: %v", err)
		})
	}
	wg.Wait()
	if n := effects.Load(); n != 1 {
		s.Fatalf("%d effects, want 1", n)
	}
}

func twoInboxConsumers(s *inboxSuite) {
	s.must("first", s.see(s.key, nil), false)
	other := s.key
	other.Consumer = "Billing"
	s.must("other consumer", s.see(other, nil), false)
}

func strangeIDs(s *inboxSuite) {
	long := strings.Repeat("x", 5000)
	for _, suffix := range []string{"", " ", "A", "a", "é", "e\u0301", "\x00", "\x00\x00", "\xff", "'", "%", "\\", long, long + "y",
		"sha256:" + s.key.MessageID} {
		key := s.key
		key.MessageID += suffix
		s.must(fmt.Sprintf("id with %.10q", suffix), s.see(key, nil), false)
		s.must(fmt.Sprintf("id with %.10q again", suffix), s.see(key, nil), true)
	}
}

func outsideOfATransaction(s *inboxSuite) {
	if seen, err := s.Seen(s.Context(), s.key); err == nil || seen {
		s.Fatalf("got %v, %v, want an error", seen, err)
	}
	s.must("afterwards", s.see(s.key, nil), false)
}

func emptyNames(s *inboxSuite) {
	for _, key := range []dedup.Key{{}, {Consumer: "c"}, {MessageID: "m"}} {
		err := s.InTx(s.Context(), func(ctx context.Context) error { _, err := s.Seen(ctx, key); return err })
		if err == nil {
			s.Errorf("%+v: accepted", key)
		}
	}
}
