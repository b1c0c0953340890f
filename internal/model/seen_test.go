package model_test

import (
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/millrace-go/millrace/internal/testenv"
)

// A model in which something never happens proves nothing about it. So what half messages can come to is counted, over
// all worlds, and has to have been there.
var seen sync.Map

const (
	sawDone       = "a local transaction committed"
	sawLate       = "a business did something that was given up"
	sawAfterEnd   = "a local transaction committed when a checker had ended its message"
	sawRefused    = "a witness was refused"
	sawTooLate    = "a witness came too late"
	sawTombstone  = "a tombstone was written"
	sawLetGo      = "a message was let go"
	sawEnded      = "a message ended: "
	sawParked     = "a message was parked"
	sawResumed    = "a message was resumed"
	sawRevived    = "a message was revived"
	sawForgotten  = "a message was purged"
	sawPurged     = "a witness or a tombstone was purged"
	sawNonsense   = "a checker answered nonsense"
	sawBadReply   = "a callback answered nonsense"
	sawFrozen     = "a process stood still"
	sawDeadSeller = "a producer died"
)

var (
	often = []string{
		sawDone, sawLate, sawTombstone, sawLetGo, sawEnded + byProducer, sawEnded + byTombstone, sawEnded + byChecker, sawParked, sawResumed,
		sawForgotten, sawPurged, sawNonsense, sawBadReply, sawFrozen, sawDeadSeller,
	}
	rarely = []string{sawAfterEnd, sawRefused, sawTooLate, sawRevived}
)

func saw(what string) {
	n, _ := seen.LoadOrStore(what, new(atomic.Int64))
	n.(*atomic.Int64).Add(1)
}

func lookAtSeen(t *testing.T) {
	t.Helper()
	wanted := often
	if testenv.Full() {
		wanted = slices.Concat(often, rarely)
	}
	for _, what := range wanted {
		if _, there := seen.Load(what); !there {
			t.Errorf("in none of all these worlds %s", what)
		}
	}
	if testing.Verbose() {
		seen.Range(func(what, n any) bool {
			t.Logf("%6d times %s", n.(*atomic.Int64).Load(), what)
			return true
		})
	}
}
