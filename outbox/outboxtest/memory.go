package outboxtest

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/millrace-go/millrace/internal/confirmation"
	"github.com/millrace-go/millrace/outbox"
)

// Memory is an outbox.Store without a database, for tests and simulation: it keeps the rules of the
// contract, has a clock of its own, and fails when told to. Methods are safe for concurrent use.
type Memory struct {
	mu        sync.Mutex
	skew      time.Duration
	intercept func(op string) error
	gate      func(ctx context.Context, op string) error

	last     int64
	rows     map[int64]*memoryRow
	dead     []*memoryDead
	sent     []*memorySent
	stops    map[memoryStop]int64
	lanes    [outbox.Lanes]memoryLane
	replicas map[string]memoryReplica
	locked   map[int64]bool
	pauses   map[memoryPause]bool
	refused  int

	confirming outbox.Confirming
	forged     uint64
	words      map[string]map[string]memoryWord // by message and group
	pace       confirmation.Pace
}

// Entry is a message to be put into a Memory.
type Entry struct {
	ID    string
	Topic string
	Key   string
	Body  []byte
	Meta  map[string]string
	Delay time.Duration // before it may be delivered
	// Schedule is the name by which it can be cancelled.
	Schedule string
	// After is what becomes of it when the broker has it: kept for an hour, or overdue after one; or, if Plan
	// names groups, as that has it.
	After outbox.After
	Plan  outbox.Plan
	Lane  int   // of a message without a key
	Err   error // makes the row undecodable
}

// Dead is a message that was parked.
type Dead struct {
	outbox.Row
	Why outbox.Refused
}

// Sent is a message that the broker has and that is remembered.
type Sent struct {
	outbox.Row
	After outbox.After
	State outbox.State // StateSent or StateDone
	// Due is when a confirmation is overdue, Expires when it may be forgotten, in what time from now; 0
	// for never.
	Due, Expires time.Duration
}

type memoryRow struct {
	outbox.Row
	after     outbox.After
	plan      outbox.Plan
	ready     bool
	deliverAt time.Time
	retryAt   time.Time
	heldFor   string // destination whose stop holds it
	held      bool
	schedule  string
	sending   bool
}

type memoryPause struct {
	kind outbox.PauseKind
	name string
}

type memoryStop struct {
	lane             int
	destination, key string
}

type memoryLane struct {
	owner   string // "" = released
	epoch   int64
	crashes int
}

type memoryReplica struct {
	beat    int64
	expires time.Time
	down    []string
}

// NewMemory returns an empty outbox. Its clock is time.Now, also in a synctest bubble.
func NewMemory() *Memory {
	return &Memory{
		rows:     map[int64]*memoryRow{},
		stops:    map[memoryStop]int64{},
		replicas: map[string]memoryReplica{},
		locked:   map[int64]bool{},
		pauses:   map[memoryPause]bool{},
		words:    map[string]map[string]memoryWord{},
	}
}

// Insert commits messages in one transaction and returns their positions.
func (m *Memory) Insert(entries ...Entry) []int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	var positions []int64
	for _, e := range entries {
		m.last++
		m.insert(m.last, e)
		positions = append(positions, m.last)
	}
	return positions
}

// Draw takes the next position, as a transaction that has not committed yet does.
func (m *Memory) Draw() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.last++
	return m.last
}

// InsertAt commits a message under a position that was drawn before.
func (m *Memory) InsertAt(pos int64, e Entry) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.insert(pos, e)
}

func (m *Memory) insert(pos int64, e Entry) {
	lane := e.Lane
	if e.Key != "" {
		lane = outbox.Lane(e.Key)
	}
	size := len(e.Body)
	for k, v := range e.Meta {
		size += len(k) + len(v)
	}
	now := m.now()
	m.rows[pos] = &memoryRow{
		Row: outbox.Row{
			Ref: outbox.Ref{Pos: pos, ID: e.ID}, Lane: lane, Topic: e.Topic, Key: e.Key, Size: size,
			Metadata: maps.Clone(e.Meta), Payload: slices.Clone(e.Body), CreatedAt: now, Err: e.Err,
			Cancellable: e.Schedule != "",
		},
		schedule:  e.Schedule,
		after:     e.After,
		plan:      e.Plan,
		ready:     e.Delay <= 0,
		deliverAt: now.Add(e.Delay),
	}
}

// Waiting returns the rows that are there, by position.
func (m *Memory) Waiting() []outbox.Row {
	m.mu.Lock()
	defer m.mu.Unlock()
	var rows []outbox.Row
	for _, pos := range slices.Sorted(maps.Keys(m.rows)) {
		rows = append(rows, m.rows[pos].Row)
	}
	return rows
}

// Dead returns the parked messages, in the order in which they were parked.
func (m *Memory) Dead() []Dead {
	m.mu.Lock()
	defer m.mu.Unlock()
	var dead []Dead
	for _, d := range m.dead {
		dead = append(dead, d.Dead)
	}
	return dead
}

// Sent returns the messages that the broker has and that are remembered.
func (m *Memory) Sent() []Sent {
	m.mu.Lock()
	defer m.mu.Unlock()
	var sent []Sent
	for _, s := range m.sent {
		sent = append(sent, s.seen(m.now()))
	}
	return sent
}

// Refusals counts the refusals that were recorded.
func (m *Memory) Refusals() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.refused
}

// Held returns the number of lanes that each registered replica holds.
func (m *Memory) Held() map[string]int {
	m.mu.Lock()
	defer m.mu.Unlock()
	held := map[string]int{}
	for id := range m.replicas {
		held[id] = 0
	}
	for _, l := range m.lanes {
		if _, lives := m.replicas[l.owner]; lives {
			held[l.owner]++
		}
	}
	return held
}

// Crashes returns the largest crash count of any lane.
func (m *Memory) Crashes() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	most := 0
	for _, l := range m.lanes {
		most = max(most, l.crashes)
	}
	return most
}

// SetCrashes sets the crash count of every lane.
func (m *Memory) SetCrashes(n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range m.lanes {
		m.lanes[i].crashes = n
	}
}

// Remove deletes a row by hand, as an operator may.
func (m *Memory) Remove(pos int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.rows, pos)
}

// Harness makes the rules of this package applicable to it.
func (m *Memory) Harness() Harness {
	return Harness{Store: m, Insert: m.Insert, Waiting: m.Waiting, Dead: m.Dead, Sent: m.Sent, Evict: m.Evict, Remove: m.Remove,
		Pause: m.Pause, Resume: m.Resume, Cancel: m.Cancel, Lock: m.Lock, Confirm: m.Confirmations, Replay: m.Replay}
}

// Pause keeps the messages of a topic, or to a destination, in the outbox until Resume.
func (m *Memory) Pause(kind outbox.PauseKind, name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pauses[memoryPause{kind, name}] = true
}

// Resume ends a pause.
func (m *Memory) Resume(kind outbox.PauseKind, name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.pauses, memoryPause{kind, name})
}

// Cancel cancels the message that waits under a schedule name.
func (m *Memory) Cancel(schedule string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	err := outbox.ErrNoSchedule
	for pos, row := range m.rows {
		switch {
		case row.schedule != schedule:
		case row.sending:
			err = outbox.ErrTooLate
		default:
			delete(m.rows, pos)
			return nil
		}
	}
	return err
}

// Lock keeps a row locked, as an open foreign transaction does, until unlock is called.
func (m *Memory) Lock(pos int64) (unlock func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.locked[pos] = true
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.locked, pos)
	}
}

// Evict forgets a replica, as the sweep of another does when its lease has ended.
func (m *Memory) Evict(replica string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.replicas, replica)
}

// Skew moves the clock of the database.
func (m *Memory) Skew(by time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.skew += by
}

// Intercept calls f before each operation, by the name of the method; an error of f is the answer.
// It may block. Nil takes it away.
func (m *Memory) Intercept(f func(op string) error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.intercept = f
}

// Gate calls f before each step of an operation that is stored by itself, with the context that the operation was
// given, so that a test can tell one process from another. An error of f is the answer, and nothing of the step is
// done. It may block. The steps are the methods; "Judge", which follows Settle and Confirmations; "Compensate", which
// follows Promote; and "Late", which follows Confirmations.
func (m *Memory) Gate(f func(ctx context.Context, op string) error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.gate = f
}

func (m *Memory) now() time.Time { return time.Now().Add(m.skew) }

// enter begins an operation: on nil the caller holds the lock.
func (m *Memory) enter(ctx context.Context, op string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m.mu.Lock()
	intercept, gate := m.intercept, m.gate
	m.mu.Unlock()
	if intercept != nil {
		if err := intercept(op); err != nil {
			return err
		}
	}
	if gate != nil {
		if err := gate(ctx, op); err != nil {
			return err
		}
	}
	m.mu.Lock()
	return nil
}

func (m *Memory) held(g outbox.Grant) bool {
	return g.Lane >= 0 && g.Lane < outbox.Lanes && m.lanes[g.Lane].epoch == g.Epoch
}

// row finds a row that a grant may change.
func (m *Memory) row(g outbox.Grant, r outbox.Ref) *memoryRow {
	row := m.rows[r.Pos]
	if !m.held(g) || row == nil || row.ID != r.ID || row.Lane != g.Lane {
		return nil
	}
	return row
}

// byPosition returns the rows in order.
func (m *Memory) byPosition() []*memoryRow {
	return slices.SortedFunc(maps.Values(m.rows), func(a, b *memoryRow) int { return cmp.Compare(a.Pos, b.Pos) })
}
