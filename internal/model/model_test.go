package model_test

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/outbox"
)

// again is how often a seed is run that is looked at alone. What goes wrong is the same each time; the order in which
// goroutines run at the same moment is not, and neither is the jitter of waits.
const again = 50

func TestWhateverGoesWrongNothingIsLostInventedDoubledOrUntold(t *testing.T) {
	first, seeds := uint64(1), 150
	if testenv.Full() {
		seeds = 10_000
	}
	each := 1
	if text := os.Getenv("MILLRACE_SEED"); text != "" {
		seed, err := strconv.ParseUint(text, 10, 64)
		require.NoError(t, err)
		first, seeds, each = seed, 1, again
	}
	t.Run("seeds", func(t *testing.T) {
		for n := range runtime.GOMAXPROCS(0) {
			t.Run(fmt.Sprint(n), func(t *testing.T) {
				t.Parallel()
				for seed := first + uint64(n); seed < first+uint64(seeds); seed += uint64(runtime.GOMAXPROCS(0)) {
					for range each {
						t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
							stuck := time.AfterFunc(5*time.Minute, func() { panic(fmt.Sprint("model: seed ", seed, " is stuck: something spins")) })
							defer stuck.Stop()
							synctest.Test(t, func(t *testing.T) { newWorld(t, seed).run() })
						})
					}
				}
			})
		}
	})
	if each == 1 && !t.Failed() {
		lookAtSeen(t)
	}
}

// run lets everything go wrong for a while, then nothing, and looks what has become of it.
func (w *world) run() {
	w.Cleanup(func() {
		if w.Failed() {
			w.tellHalves()
			w.Logf("seed %d failed: MILLRACE_SEED=%d go test -run %s ./internal/model", w.chaos.seed, w.chaos.seed, "TestWhateverGoesWrong")
		}
	})
	ctx, cancel := context.WithCancel(w.Context())
	var work sync.WaitGroup
	box := w.box()
	for n := range w.replicas {
		w.live(ctx, &work, fmt.Sprint("forwarder", n), func(l *life) { w.forward(l, box) })
	}
	w.live(ctx, &work, producer, w.confirmed)
	for _, group := range groups {
		w.live(ctx, &work, group, func(l *life) { w.consume(l, group) })
	}
	work.Go(func() { w.operate(ctx) })
	if w.keys != nil {
		work.Go(func() { w.rotate(ctx) })
		work.Go(func() { w.forge(ctx) })
	}
	tries, sold := w.offer(ctx, &work)
	for n := range 2 {
		w.live(ctx, &work, fmt.Sprint("seller", n), func(l *life) { w.sell(l, box, tries) })
	}
	for n := range w.halves.replicas {
		w.live(ctx, &work, fmt.Sprint("check-back", n), func(l *life) { w.checkBack(l, box, n) })
	}
	w.live(ctx, &work, "operator", func(l *life) { w.decide(l, box) })
	produced := w.produce(ctx, &work, box)

	time.Sleep(w.lasts)
	<-produced
	<-sold
	for end := time.Now().Add(30 * time.Minute); !w.atRest(); time.Sleep(time.Second) {
		if time.Now().After(end) {
			w.Errorf("it does not come to rest: %v", w.unrest())
			break
		}
	}
	cancel()
	work.Wait()
	w.look()
}

// atRest reports whether nothing will happen any more.
func (w *world) atRest() bool { return w.broker.empty() && len(w.unrest()) == 0 }

// unrest is what is not at an end.
func (w *world) unrest() (all []string) {
	for _, r := range w.outbox.Waiting() {
		all = append(all, r.ID+" waits")
	}
	for _, s := range w.outbox.Sent() {
		if s.State == outbox.StateSent {
			all = append(all, s.ID+" is not confirmed")
		}
	}
	for _, d := range w.outbox.Dead() {
		if d.Why.Reason == outbox.ReasonFailed {
			all = append(all, d.ID+" is to be replayed")
		}
	}
	return append(all, w.undecided()...)
}

// look checks what must be true in the end.
func (w *world) look() {
	w.mu.Lock()
	defer w.mu.Unlock()
	b := w.broker
	b.mu.Lock()
	defer b.mu.Unlock()
	wrong := func(format string, args ...any) { w.Errorf(format, args...) }
	for _, text := range w.wrongs {
		wrong("%s", text)
	}
	state := map[string]outbox.State{}
	note := func(id string, s outbox.State) {
		if was, there := state[id]; there {
			wrong("%s is %s and %s", id, was, s)
		}
		state[id] = s
	}
	for _, s := range w.outbox.Sent() {
		note(s.ID, s.State)
	}
	for _, d := range w.outbox.Dead() {
		note(d.ID, outbox.StateDead)
		if d.Why.Reason == "" {
			wrong("%s is dead without a reason", d.ID)
		}
	}
	for id := range w.sequence {
		w.lookAt(id, state[id], wrong)
	}
	w.lookAtKeys(wrong)
	w.lookAtHalves(wrong)
	// I2: no ghosts.
	for _, id := range append(slices.Clone(b.first), w.hooked...) {
		if w.sequence[id] == 0 {
			wrong("%s was never committed, and somebody heard of it", id)
		}
	}
	// I4: duplicates within what was in flight.
	for id, n := range b.stored {
		if n > 1+b.excused[id] {
			wrong("%s came %d times, and only %d times was there a reason for a copy", id, n, b.excused[id])
		}
	}
	// I5: first deliveries of a key in the order of the commits.
	last := map[string]string{}
	for _, id := range b.first {
		key := w.topicOf[id] + "/" + w.keyOf[id]
		if w.keyOf[id] == "" {
			continue
		}
		if w.sequence[last[key]] > w.sequence[id] {
			wrong("%s came before %s, which was committed before", last[key], id)
		}
		last[key] = id
	}
}

// lookAt checks one committed message.
func (w *world) lookAt(id string, state outbox.State, wrong func(string, ...any)) {
	for _, g := range groups {
		name := g + "/" + id
		n := w.applied[g][id]
		// I1, I9: it took effect, or somebody knows of it.
		if n == 0 && state != outbox.StateDead && (w.topicOf[id] == orders || w.poisoned[name] == 0) {
			wrong("%s is %q, and had no effect at %s", id, state, g)
		}
		// I3: once.
		if n > 1 && (g == withInbox || n-1 > w.windows[name]) {
			wrong("%s took effect %d times at %s, and only %d times was there a reason", id, n, g, w.windows[name])
		}
		if w.quiet && n != 1 {
			wrong("nothing went wrong, and %s took effect %d times at %s", id, n, g)
		}
	}
	if w.topicOf[id] == orders && state != outbox.StateDone && state != outbox.StateDead {
		wrong("%s is %q in the end", id, state)
	}
	if w.quiet && w.broker.stored[id+"/1"] != 1 {
		wrong("nothing went wrong, and %s was sent %d times", id, w.broker.stored[id+"/1"])
	}
	if w.quiet && w.topicOf[id] == orders && state != outbox.StateDone {
		wrong("nothing went wrong, and %s is %s", id, state)
	}
}
