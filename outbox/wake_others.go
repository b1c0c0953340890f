package outbox

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/millrace-go/millrace/internal/backoff"
)

// others is the wake-up between this Box and those of other processes, over a Waker.
//
// A note is the name of its sender and either the lanes that have new messages, in hexadecimal, or the
// number of a hearing test: "X4TQ 00000000000000f0", "X4TQ ?3".
type others struct {
	waker Waker
	self  string // tells own notes from those of others
	local func(lanes uint64)
	log   *slog.Logger

	mu       sync.Mutex
	pending  uint64 // lanes not told yet
	telling  bool
	failures int // of Send, in a row
	mute     time.Time
	tests    int
	waiting  map[string]chan struct{} // hearing tests under way

	coming    sync.Mutex // held while listeners come and go
	listeners int
	hangUp    func()
}

func newOthers(waker Waker, log *slog.Logger, local func(uint64)) *others {
	return &others{waker: waker, self: rand.Text()[:16], local: local, log: log, waiting: make(map[string]chan struct{})}
}

const (
	// noteCoolDown is the time after a note in which lanes are gathered for the next one.
	noteCoolDown = 5 * time.Millisecond
	// noteTimeout bounds the sending of a note, and the way of one back to its sender.
	noteTimeout = 5 * time.Second
)

// noteBackoff is the pause after a Waker has failed.
var noteBackoff = backoff.Policy{Base: time.Second, Max: time.Minute}

// tell sends a note with the lanes, soon. It never waits: the first note goes at once, from a goroutine that
// lasts as long as there is something to tell, and what is committed while it is under way, and a moment
// longer, shares the next one. After a failure the lanes are kept for a later note.
func (o *others) tell(lanes uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.pending |= lanes
	if o.telling || time.Now().Before(o.mute) {
		return
	}
	o.telling = true
	go o.tellAll()
}

func (o *others) tellAll() {
	for {
		o.mu.Lock()
		lanes := o.pending
		o.pending = 0
		if lanes == 0 {
			o.telling = false
			o.mu.Unlock()
			return
		}
		o.mu.Unlock()
		if err := o.send(fmt.Sprintf("%016x", lanes)); err != nil {
			o.failed(lanes, err)
			return
		}
		o.mu.Lock()
		recovered := o.failures > 0
		o.failures = 0
		o.mu.Unlock()
		if recovered {
			o.log.Info("wake-up of other processes sent again")
		}
		time.Sleep(noteCoolDown)
	}
}

// failed keeps the lanes, and quiet for a while.
func (o *others) failed(lanes uint64, err error) {
	o.mu.Lock()
	o.pending |= lanes
	o.telling = false
	o.failures++
	o.mute = time.Now().Add(noteBackoff.Delay(o.failures))
	first := o.failures == 1
	o.mu.Unlock()
	if first {
		o.log.Warn("wake-up of other processes not sent, they find messages by polling", "error", err)
	}
}

// send has a context of its own: a note outlives the transactions that it tells of.
func (o *others) send(what string) error {
	ctx, cancel := context.WithTimeout(context.Background(), noteTimeout)
	defer cancel()
	return o.waker.Send(ctx, o.self+" "+what)
}

// hear takes a note. What this Box has sent itself its subscribers know already.
func (o *others) hear(note string) {
	from, what, _ := strings.Cut(note, " ")
	if from == o.self {
		o.mu.Lock()
		defer o.mu.Unlock()
		if test, ok := o.waiting[what]; ok {
			delete(o.waiting, what)
			close(test)
		}
		return
	}
	if lanes, err := strconv.ParseUint(what, 16, 64); err == nil && len(what) == 16 && lanes != 0 {
		o.local(lanes)
	}
}
