package outbox

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// bubble runs a test in a time of its own, and lets the last cool-down end.
func bubble(t *testing.T, test func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		test(t)
		time.Sleep(2 * noteTimeout)
	})
}

// hub is a Waker in memory, with the faults that a network has.
type hub struct {
	mu      sync.Mutex
	notes   []string
	listen  map[int]func(string)
	joined  int
	refuse  error // what Send and Listen answer
	deaf    bool  // takes notes and delivers none
	hangs   bool  // Send does not return before its context ends
	cutting context.CancelCauseFunc
}

func (h *hub) Send(ctx context.Context, note string) error {
	h.mu.Lock()
	refuse, hangs := h.refuse, h.hangs
	h.mu.Unlock()
	if hangs {
		<-ctx.Done()
		return ctx.Err()
	}
	if refuse != nil {
		return refuse
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.notes = append(h.notes, note)
	if !h.deaf {
		for _, heard := range h.listen {
			heard(note)
		}
	}
	return nil
}

func (h *hub) Listen(ctx context.Context, ready func(), heard func(string)) error {
	ctx, cut := context.WithCancelCause(ctx)
	defer cut(nil)
	h.mu.Lock()
	if h.refuse != nil {
		defer h.mu.Unlock()
		return h.refuse
	}
	if h.listen == nil {
		h.listen = make(map[int]func(string))
	}
	h.joined++
	id := h.joined
	h.listen[id] = heard
	h.cutting = cut
	h.mu.Unlock()
	defer func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.listen, id)
	}()
	ready()
	<-ctx.Done()
	return context.Cause(ctx)
}

func (h *hub) set(change func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	change()
}

// signals are the notes that were sent and are not hearing tests.
func (h *hub) signals() (notes []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, note := range h.notes {
		if !strings.Contains(note, "?") {
			notes = append(notes, note)
		}
	}
	return notes
}

// station is the wake-up of one process.
func station(h *hub) *wakes {
	ws := &wakes{}
	ws.connect(h, slog.New(slog.DiscardHandler))
	return ws
}

// settled waits until nothing moves any more, and takes what was signalled.
func settled(w *Wake) uint64 {
	synctest.Wait()
	select {
	case <-w.C():
	default:
	}
	return w.Take()
}

func TestASignalReachesTheSubscribersOfOtherProcessesAndWakesOwnOnesOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := &hub{}
		here, there := station(h), station(h)
		mine, stop := here.subscribe()
		defer stop()
		theirs, stop := there.subscribe()
		defer stop()
		require.Equal(t, ^uint64(0), settled(theirs), "a listener looks once at all lanes: it may have missed notes")
		settled(mine)

		here.signal(1<<63 | 1<<5)
		require.Equal(t, uint64(1<<63|1<<5), settled(theirs))
		require.Equal(t, uint64(1<<63|1<<5), settled(mine))
		require.NoError(t, h.Send(t.Context(), h.signals()[0])) // the network doubles it
		require.Equal(t, uint64(1<<63|1<<5), settled(theirs))
		require.Zero(t, settled(mine), "its own note wakes nobody again")
	})
}

func TestThousandCommitsInATenthOfASecondAreTwentyNotesAndLoseNoLane(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := &hub{}
		here, there := station(h), station(h)
		w, stop := there.subscribe()
		defer stop()
		settled(w)
		var told uint64
		for i := range 1000 {
			here.signal(1 << (i % 64))
			told |= settled(w)
			time.Sleep(100 * time.Microsecond)
		}
		require.Equal(t, ^uint64(0), told|settled(w))
		require.LessOrEqual(t, len(h.signals()), 21)
		time.Sleep(time.Minute)
		n := len(h.signals())
		here.signal(1)
		require.Equal(t, uint64(1), settled(w), "the first note after a quiet time goes at once")
		require.Len(t, h.signals(), n+1)
	})
}

func TestASignalDuringTheCoolDownIsSentAfterIt(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := &hub{}
		here, there := station(h), station(h)
		w, stop := there.subscribe()
		defer stop()
		settled(w)
		here.signal(1)
		require.Equal(t, uint64(1), settled(w))
		here.signal(2)
		require.Zero(t, settled(w))
		time.Sleep(noteCoolDown)
		require.Equal(t, uint64(2), settled(w))
	})
}

func TestAWakerThatHangsOrFailsNeverDelaysASignalAndKeepsTheLanes(t *testing.T) {
	for name, break_ := range map[string]func(h *hub){
		"hangs": func(h *hub) { h.hangs = true },
		"fails": func(h *hub) { h.refuse = errors.New("no route") },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				h := &hub{}
				here, there := station(h), station(h)
				w, stop := there.subscribe()
				defer stop()
				settled(w)
				h.set(func() { break_(h) })
				began := time.Now()
				for i := range 100 {
					here.signal(1 << (i % 64))
				}
				require.Zero(t, time.Since(began), "a commit does not wait for the side connection")
				time.Sleep(time.Hour)
				h.set(func() { h.hangs, h.refuse = false, nil })
				synctest.Wait()
				require.Empty(t, h.signals())
				here.signal(1)
				require.Equal(t, ^uint64(0), settled(w), "what could not be told is told with the next note")
			})
		})
	}
}

func TestAListenerThatFailsOrHearsNothingListensAnew(t *testing.T) {
	for name, fault := range map[string]func(h *hub){
		"cut":             func(h *hub) { h.cutting(errors.New("cut")) },
		"deaf":            func(h *hub) { h.deaf = true },
		"cut and refused": func(h *hub) { h.refuse = errors.New("no route"); h.cutting(errors.New("cut")) },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				h := &hub{}
				here, there := station(h), station(h)
				w, stop := there.subscribe()
				defer stop()
				settled(w)
				h.set(func() { fault(h) })
				time.Sleep(time.Hour) // it notices within a hearing test, and goes on trying
				h.set(func() { h.deaf, h.refuse = false, nil })
				time.Sleep(2 * time.Minute)
				require.Equal(t, ^uint64(0), settled(w), "what was told while it did not listen may be in any lane")
				here.signal(4)
				require.Equal(t, uint64(4), settled(w))
				h.set(func() { require.Len(t, h.listen, 1) })
			})
		})
	}
}

func TestTheLastSubscriberEndsTheListening(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := &hub{}
		ws := station(h)
		_, stop1 := ws.subscribe()
		_, stop2 := ws.subscribe()
		synctest.Wait()
		stop1()
		stop1() // once more does not count
		h.set(func() { require.Len(t, h.listen, 1) })
		stop2()
		h.set(func() { require.Empty(t, h.listen) })
		w, stop3 := ws.subscribe()
		require.NotZero(t, settled(w))
		stop3()
	})
}

func TestForeignNotesOnTheChannelAreIgnored(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := &hub{}
		w, stop := station(h).subscribe()
		defer stop()
		settled(w)
		for _, note := range []string{"", "hello", "a b", "a ?1", "x -1", "x 0000", strings.Repeat("f", 1000)} {
			require.NoError(t, h.Send(t.Context(), note))
			require.Zero(t, settled(w), "note %q", note)
		}
	})
}

func TestCheckTellsADeafWakeUpFromOneThatCannotBeReached(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := &hub{}
		require.NoError(t, station(h).check(t.Context()))
		require.NoError(t, (&wakes{}).check(t.Context()), "without a Waker")

		h.deaf = true
		err := station(h).check(t.Context())
		require.True(t, IsSetup(err))
		require.ErrorContains(t, err, "transaction mode")

		h.deaf, h.refuse = false, errors.New("no route")
		err = station(h).check(t.Context())
		require.False(t, IsSetup(err))
		require.ErrorContains(t, err, "no route")

		h.refuse, h.hangs = nil, true
		err = station(h).check(t.Context())
		require.False(t, IsSetup(err))
		require.ErrorIs(t, err, context.DeadlineExceeded)

		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		require.ErrorIs(t, station(h).check(ctx), context.Canceled)
	})
}

func TestSignalsFromManyCommittersAtOnceAreAllTold(t *testing.T) {
	h := &hub{}
	here, there := station(h), station(h)
	var told atomic.Uint64
	w, stop := there.subscribe()
	defer stop()
	<-w.C()
	require.Equal(t, ^uint64(0), w.Take(), "the first look")
	done := make(chan struct{})
	go func() {
		defer close(done)
		for told.Load() != ^uint64(0)>>1 {
			<-w.C()
			told.Or(w.Take())
		}
	}()
	var wg sync.WaitGroup
	for lane := range 63 {
		wg.Go(func() { here.signal(1 << lane) })
	}
	wg.Wait()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Fatalf("told %x", told.Load())
	}
}
