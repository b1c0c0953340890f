package model_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace/dedup"
	"github.com/millrace-go/millrace/internal/confirmation"
	"github.com/millrace-go/millrace/internal/meta"
	"github.com/millrace-go/millrace/outbox"
	"github.com/millrace-go/millrace/outbox/outboxtest"
)

// Topics: messages of orders are confirmed by both groups, those of plain are not; words and what was given up.
const (
	orders        = "orders"
	plain         = "plain"
	confirmations = "millrace.confirmations"
	graveyard     = "graveyard"
)

// Groups: one with an inbox, one with records beside its effects, and the producer for confirmations.
const (
	withInbox   = "inbox"
	withRecords = "records"
	producer    = "producer"
)

var groups = []string{withInbox, withRecords}

// world is one run of everything.
type world struct {
	*testing.T
	chaos     chaos
	quiet     bool // nothing goes wrong
	ordered   bool // the broker keeps the order of keys in a batch
	wakes     bool // forwarders hear of commits
	messages  int
	replicas  int
	deadline  time.Duration
	began     time.Time
	lasts     time.Duration // chaos
	mended    time.Duration // when the consumers are repaired
	outbox    *outboxtest.Memory
	broker    *broker
	records   *dedup.Memory
	business  *database
	consumers *database
	shop      *database // of a business that is not where the outbox is
	halves    halves
	keys      *keys // nil: nobody signs

	mu       sync.Mutex
	sequence map[string]int            // of commits, by id
	keyOf    map[string]string         // by id
	topicOf  map[string]string         // by id
	hooked   []string                  // ids whose AfterCommit ran
	applied  map[string]map[string]int // effects, by group and id
	windows  map[string]int            // in which an effect may be doubled, by group and id
	poisoned map[string]int            // the latest sending that was given up, by group and id
	wrongs   []string                  // what was seen on the way that must not be
	replays  int
	pending  int // what will still be done, of what was given up
}

func newWorld(t *testing.T, seed uint64) *world {
	w := &world{
		T: t, chaos: chaos{seed: seed, away: map[string][2]time.Duration{}}, began: time.Now(), records: new(dedup.Memory), outbox: outboxtest.NewMemory(),
		sequence: map[string]int{}, keyOf: map[string]string{}, topicOf: map[string]string{},
		applied: map[string]map[string]int{withInbox: {}, withRecords: {}}, windows: map[string]int{}, poisoned: map[string]int{},
	}
	w.business = w.newDatabase("business", nil)
	w.business.lates, w.business.changed, w.business.refuses = true, w.turned, w.wasForgotten
	w.shop = w.newDatabase("shop", func(effects []string) {
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, id := range effects {
			w.happens(w.deal(id))
		}
	})
	w.shop.lates, w.shop.changed = true, w.barrier
	w.choose()
	w.broker = newBroker(w, map[string][]string{orders: groups, plain: groups, confirmations: {producer}})
	w.consumers = w.newDatabase("consumers", func(effects []string) {
		for _, id := range effects {
			w.effect(withInbox, id)
		}
	})
	w.outbox.Gate(w.gate)
	w.outbox.Confirming(w.confirming())
	return w
}

// confirming is what the producer knows of confirmations now.
func (w *world) confirming() outbox.Confirming {
	c := outbox.Confirming{PerSecond: 20, OnDead: w.onDead}
	if w.keys != nil {
		c.Keys = w.keys.atProducer(time.Since(w.began))
	}
	return c
}

// choose draws what goes wrong.
func (w *world) choose() {
	pick := func(what string, most int) int { return w.fate(most+1, "choose", what) }
	c := &w.chaos
	kind := pick("kind", 11)
	some := func(kinds ...int) bool {
		for _, k := range kinds {
			if k == kind {
				return true
			}
		}
		return kind > 6
	}
	w.quiet = kind == 0
	if some(1) {
		c.dies = 20 + pick("dies", 400)
	}
	if some(2) {
		c.dbFails, c.dbLost, c.dbSlow = pick("db fails", 60), pick("db lost", 60), pick("db slow", 8)
	}
	if some(3) {
		c.refuses, c.unreached, c.unanswered = pick("refuses", 200), pick("unreached", 200), pick("unanswered", 200)
	}
	if some(4) {
		c.drops, c.doubles, c.delays = pick("drops", 400), pick("doubles", 400), pick("delays", 400)
	}
	if some(5) {
		c.wordsDropped, c.wordsDoubled, c.wordsDelayed = pick("words dropped", 400), pick("words doubled", 400), pick("words delayed", 400)
	}
	if some(3, 4, 5) {
		c.handlerFails, c.handlerBroken = pick("handler fails", 300), pick("handler broken", 300)
	}
	w.ordered, w.wakes = pick("ordered", 1) == 0, pick("wakes", 1) == 0
	w.messages, w.replicas = 5+pick("messages", 20), 1+pick("replicas", 2)
	w.deadline = time.Duration(1+pick("deadline", 5)) * time.Second
	if w.quiet {
		w.deadline = time.Minute
	}
	w.lasts = time.Duration(20+pick("lasts", 60)) * time.Second
	w.mended = time.Duration(pick("mended", int(w.lasts/time.Second))) * time.Second
	w.chooseHalves(pick, some)
	if pick("signed", 2) == 0 {
		var at [3]time.Duration
		for n := range at {
			at[n] = time.Duration(pick(fmt.Sprint("keys ", n), int(w.lasts/time.Millisecond)/len(at))) * time.Millisecond
		}
		w.keys = newKeys(at[0], at[0]+at[1]+time.Second, at[0]+at[1]+at[2]+2*time.Second)
	}
}

func (w *world) healed() bool   { return w.quiet || time.Since(w.began) >= w.lasts }
func (w *world) repaired() bool { return time.Since(w.began) >= w.mended }

// unroutable messages are refused by the broker, always.
func (w *world) unroutable(id string) bool {
	return !w.quiet && w.chaos.refuses > 0 && w.fate(20, "unroutable", id) == 0
}

// committed is called at the commit of each message.
func (w *world) committed(e outboxtest.Entry) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.sequence[e.ID] > 0 {
		w.wrong("%s was given to the outbox twice", e.ID)
	}
	w.sequence[e.ID], w.keyOf[e.ID], w.topicOf[e.ID] = len(w.sequence)+1, e.Key, e.Topic
}

func (w *world) hook(id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hooked = append(w.hooked, id)
}

func (w *world) effect(group, id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.applied[group][id]++
}

// window notes that something went wrong while a group handled a message.
func (w *world) window(group, id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.windows[group+"/"+id]++
}

// claimed notes that lanes have another holder: what was in flight under the one before may be sent twice.
func (w *world) claimed(grants []outbox.Grant) {
	lanes := map[int]bool{}
	for _, g := range grants {
		lanes[g.Lane] = true
	}
	for _, r := range w.outbox.Waiting() {
		if lanes[r.Lane] {
			w.broker.excuse(fmt.Sprint(r.ID, "/", confirmation.Answered(r.Metadata)))
		}
	}
}

// gaveUp notes that a group put a message aside.
func (w *world) gaveUp(l *life, m *message.Message) {
	group, _, _ := strings.Cut(l.name, "#")
	w.mu.Lock()
	defer w.mu.Unlock()
	name := group + "/" + m.UUID
	w.poisoned[name] = max(w.poisoned[name], confirmation.Answered(m.Metadata))
}

// confirms looks at confirmations on their way: what is done has had its effect, and what failed was put aside.
func (w *world) confirms(m *message.Message) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range confirmation.ParseAll(m.Payload, nil) {
		switch {
		case c.Err != nil:
			w.wrongs = append(w.wrongs, c.Err.Error())
		case c.Outcome == confirmation.Done && w.applied[c.Group][c.ID] == 0:
			w.wrongs = append(w.wrongs, c.Group+" confirmed "+c.ID+" before it took effect")
		case c.Outcome == confirmation.Failed && w.poisoned[c.Group+"/"+c.ID] < c.Sending:
			w.wrongs = append(w.wrongs, c.Group+" gave up "+c.ID+" before it was put aside")
		}
	}
}

// onDead looks whether a message that dies has to.
func (w *world) onDead(_ context.Context, r outbox.Record) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	wrong := func(format string, args ...any) {
		w.wrongs = append(w.wrongs, r.ID+" died: "+fmt.Sprintf(format, args...))
	}
	latest := confirmation.Answered(r.Metadata)
	if r.Attempts > attempts {
		wrong("after %d attempts", r.Attempts)
	}
	if r.Reason == outbox.ReasonFailed {
		given := 0
		for _, g := range groups {
			given = max(given, w.poisoned[g+"/"+r.ID])
		}
		if given < latest {
			wrong("no group gave up sending %d, only %d", latest, given)
		}
	}
	if r.Reason == outbox.ReasonUnconfirmed && r.Metadata[meta.FirstSent] == "" && r.Attempts > 1 {
		wrong("it does not say when it was sent first")
	}
	return nil
}
