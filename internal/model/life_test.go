package model_test

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"sync"
	"time"

	"github.com/millrace-go/millrace/internal/backoff"
)

// chaos is how often what goes wrong, in 1000.
type chaos struct {
	seed uint64
	// Of each operation on a database: it fails, it is done and the reply is lost, it takes long; a COMMIT that is given
	// up arrives later.
	dbFails, dbLost, dbSlow, dbLate int
	// From when to when a database is away, by its name.
	away map[string][2]time.Duration
	// Of each publish: refused, not reached, stored and the reply is lost.
	refuses, unreached, unanswered int
	// Of each copy on its way to a group: lost, doubled, late. Only of topics whose messages are confirmed.
	drops, doubles, delays int
	// The same of confirmations.
	wordsDropped, wordsDoubled, wordsDelayed int
	// Of each call of a handler: it fails. Of the messages: they fail until somebody has repaired the consumer.
	handlerFails, handlerBroken int
	// Lives: a process dies at one of this many of its first steps; 0 for never.
	dies int
	// Of each step of who sells or checks back: it stands still and notices nothing, it takes its time.
	freezes, dawdles int
	// Of each call of a business without SQL: not reached, done and not heard, done later. Of each question to it: no
	// answer, or nonsense.
	callFails, callLost, callLate, nonsense int
}

// fate draws a number below n that depends on nothing but the seed and the parts.
func (w *world) fate(n int, parts ...any) int {
	h := fnv.New64a()
	_, _ = fmt.Fprint(h, w.chaos.seed)
	for _, p := range parts {
		_, _ = fmt.Fprint(h, "/", p)
	}
	x := h.Sum64() // its low bits alone would depend on the last byte too much
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	return int(x % uint64(n))
}

// strikes draws whether something goes wrong, as long as anything does.
func (w *world) strikes(chance int, parts ...any) bool {
	return !w.healed() && chance > 0 && w.fate(1000, parts...) < chance
}

// life is one run of a process. When it is over, nothing that the process does has an effect any more, and what
// it had in memory is of no use to the next one.
type life struct {
	w      *world
	name   string
	ctx    context.Context
	cancel context.CancelFunc
	// frail is set if it may stand still for longer than any of its deadlines, and dies young. A round trip to a database
	// takes its time.
	frail bool

	mu    sync.Mutex
	steps map[string]int
	left  int // steps to live, if it is to die
	dead  bool
}

var (
	errDead = errors.New("model: this process is dead")
	errAway = errors.New("model: connection lost")
)

// born begins the n-th life of a process.
func (w *world) born(ctx context.Context, party string, n int) *life {
	l := &life{w: w, name: fmt.Sprint(party, "#", n), steps: map[string]int{}}
	l.ctx, l.cancel = context.WithCancel(context.WithValue(ctx, lifeKey{}, l))
	if w.chaos.dies > 0 && !w.healed() {
		l.left = 1 + w.fate(w.chaos.dies, l.name, "dies")
	}
	return l
}

// weaken makes a process frail that is there for half messages.
func (l *life) weaken() {
	l.frail = true
	if l.left > 0 {
		l.left = 1 + l.left%80
	}
}

type lifeKey struct{}

func lifeOf(ctx context.Context) *life {
	l, _ := ctx.Value(lifeKey{}).(*life)
	return l
}

// step comes before everything that leaves a trace outside of the process. It returns the number of steps of this
// kind, or that there are none any more.
func (l *life) step(what string) (n int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.dead {
		return 0, errDead
	}
	if l.left > 0 && !l.w.healed() {
		if l.left--; l.left == 0 {
			l.dead = true
			l.cancel()
			return 0, errDead
		}
	}
	l.steps[what]++
	return l.steps[what], nil
}

// nth counts.
func (l *life) nth(what string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.steps[what]++
	return l.steps[what]
}

func (l *life) over() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.dead
}

// asks is a step of a database: it may fail, or take long.
func (l *life) asks(ctx context.Context, op string) error {
	n, err := l.step(op)
	if err != nil {
		return err
	}
	if l.frail {
		took := time.Millisecond
		if l.w.strikes(l.w.chaos.freezes, l.name, op, n, "freezes") {
			saw(sawFrozen)
			took = l.w.tardiness(l.name, op, n, "freezes")
		}
		time.Sleep(took)
		if l.over() {
			return errDead
		}
	}
	if l.w.strikes(l.w.chaos.dbFails, l.name, op, n, "fails") {
		return errAway
	}
	slow := l.w.chaos.dbSlow
	if l.frail { // its transactions are short, and few: else others would not come between their steps
		slow *= 10
	}
	if l.w.strikes(slow, l.name, op, n, "slow") {
		backoff.Sleep(ctx, time.Duration(l.w.fate(8000, l.name, op, n, "how slow"))*time.Millisecond)
		if l.over() {
			return errDead
		}
	}
	return nil
}

// hears reports whether the reply to what was done arrives.
func (l *life) hears(op string) error {
	l.mu.Lock()
	l.steps["reply to "+op]++
	n, dead := l.steps["reply to "+op], l.dead
	l.mu.Unlock()
	if dead {
		return errDead
	}
	if l.w.strikes(l.w.chaos.dbLost, l.name, op, n, "lost") {
		return errAway
	}
	return nil
}
