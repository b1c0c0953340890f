package outboxtest

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace/internal/confirmation"
	"github.com/millrace-go/millrace/outbox"
)

// memorySent is a message that the broker has and that is remembered.
type memorySent struct {
	outbox.Row
	after        outbox.After
	plan         outbox.Plan
	done         bool
	at           time.Time
	due, expires time.Time // zero for never
}

func (s *memorySent) seen(now time.Time) Sent {
	seen := Sent{Row: s.Row, After: s.after, State: outbox.StateSent}
	if s.done {
		seen.State = outbox.StateDone
	}
	if !s.due.IsZero() {
		seen.Due = s.due.Sub(now)
	}
	if !s.expires.IsZero() {
		seen.Expires = s.expires.Sub(now)
	}
	return seen
}

// awaits reports whether it is to be confirmed.
func (s *memorySent) awaits() bool { return s.after == outbox.AwaitConfirmation && !s.done }

func (s *memorySent) awaited(now time.Time) confirmation.Awaited {
	return confirmation.Awaited{
		Topic: s.Topic, Groups: s.plan.Groups, Sendings: s.plan.Sendings, SentAt: s.at.UnixMicro(), Age: now.Sub(s.at),
		Deadline: s.plan.Deadline, MaxAttempts: s.plan.MaxAttempts, MaxAge: s.plan.MaxAge,
	}
}

type memoryDead struct {
	Dead
	after outbox.After
	plan  outbox.Plan
}

type memoryWord struct {
	confirmation.Word
	at time.Time
}

// Confirming configures what concerns messages that await confirmations, as outbox.Config.Confirming does. What it
// calls must not use this Memory.
func (m *Memory) Confirming(c outbox.Confirming) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.confirming = c
}

// Process is this outbox as another process sees it: its own rate of sending again, and its own probes.
func (m *Memory) Process() outbox.Store { return &memoryProcess{Memory: m} }

type memoryProcess struct {
	*Memory
	pace confirmation.Pace
}

// Promote implements outbox.Store.
func (p *memoryProcess) Promote(ctx context.Context, grants []outbox.Grant) (outbox.Promotion, error) {
	return p.promoteAt(ctx, grants, &p.pace)
}

// remember keeps a row that was sent, if it is to be.
func (m *Memory) remember(row *memoryRow) {
	now := m.now()
	switch row.after {
	case outbox.Keep:
		m.sent = append(m.sent, &memorySent{Row: row.Row, after: row.after, at: now, expires: now.Add(time.Hour)})
	case outbox.AwaitConfirmation:
		due := time.Hour
		if len(row.plan.Groups) > 0 {
			due = confirmation.Overdue(row.plan.Deadline, row.plan.Sendings)
		}
		m.sent = append(m.sent, &memorySent{Row: row.Row, after: row.after, plan: row.plan, at: now, due: now.Add(due)})
	}
}

// Confirmations is the handler of confirmations, as that of outbox.Box.
func (m *Memory) Confirmations(msg *message.Message) error {
	m.mu.Lock()
	c, err := confirmation.ParseSigned(msg.Payload, m.confirming.Keys)
	if errors.Is(err, confirmation.ErrUnsigned) {
		m.forged++
	}
	m.mu.Unlock()
	if err != nil {
		return nil
	}
	ctx := msg.Context()
	if err := m.confirm(ctx, c); err != nil {
		return err
	}
	if err := m.judge(ctx, c.ID); err != nil {
		return err
	}
	return m.late(ctx, c)
}

// Forged is what that of outbox.Box is.
func (m *Memory) Forged() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.forged
}

func (m *Memory) confirm(ctx context.Context, c confirmation.Confirmation) error {
	if err := m.enter(ctx, "Confirm"); err != nil {
		return err
	}
	defer m.mu.Unlock()
	words := m.words[c.ID]
	if words == nil {
		words = map[string]memoryWord{}
		m.words[c.ID] = words
	}
	old, said := words[c.Group]
	if word := c.Word(); !said || word.Replaces(old.Word) {
		words[c.Group] = memoryWord{word, m.now()}
	}
	return nil
}

// said is what the groups said about a message.
func (m *Memory) said(id string) (words []confirmation.Word) {
	for _, group := range slices.Sorted(maps.Keys(m.words[id])) {
		words = append(words, m.words[id][group].Word)
	}
	return words
}

// judge looks whether messages are done, or have failed.
func (m *Memory) judge(ctx context.Context, ids ...string) error {
	if err := m.enter(ctx, "Judge"); err != nil {
		return err
	}
	defer m.mu.Unlock()
	for _, s := range slices.Clone(m.sent) {
		if s.awaits() && slices.Contains(ids, s.ID) && len(m.words[s.ID]) > 0 {
			if _, err := m.conclude(ctx, s); err != nil {
				return err
			}
		}
	}
	return nil
}

// conclude ends a message about which its groups have said enough.
func (m *Memory) conclude(ctx context.Context, s *memorySent) (over bool, err error) {
	now := m.now()
	switch verdict, why := s.awaited(now).Judge(m.said(s.ID)); verdict {
	case confirmation.Done:
		s.done, s.due, s.expires = true, time.Time{}, now.Add(s.plan.Retention)
		return true, nil
	case confirmation.Failed:
		return true, m.bury(ctx, s, outbox.ReasonFailed, why)
	}
	return false, nil
}

func (m *Memory) bury(ctx context.Context, s *memorySent, reason, text string) error {
	d := &memoryDead{Dead{Row: s.Row, Why: outbox.Refused{Ref: s.Ref, Key: s.Key, Attempt: s.plan.Attempts(), Reason: reason, Error: text}}, s.after, s.plan}
	d.Attempts = d.Why.Attempt
	if m.confirming.OnDead != nil {
		if err := m.confirming.OnDead(ctx, d.record()); err != nil {
			return err
		}
	}
	m.forget(s)
	m.dead = append(m.dead, d)
	return nil
}

func (d *memoryDead) record() outbox.Record {
	return outbox.Record{
		Ref: d.Ref, State: outbox.StateDead, Lane: d.Lane, Topic: d.Topic, Key: d.Key, Attempts: d.Attempts, Size: d.Size,
		After: d.after, CreatedAt: d.CreatedAt, Reason: d.Why.Reason, Error: d.Why.Error, Metadata: d.Metadata, Payload: d.Payload,
	}
}

func (m *Memory) forget(s *memorySent) {
	m.sent = slices.DeleteFunc(m.sent, func(other *memorySent) bool { return other == s })
}

// late tells of a confirmation of a message that is dead.
func (m *Memory) late(ctx context.Context, c confirmation.Confirmation) error {
	if c.Outcome != confirmation.Done {
		return nil
	}
	if err := m.enter(ctx, "Late"); err != nil {
		return err
	}
	defer m.mu.Unlock()
	for _, d := range slices.Backward(m.dead) {
		if d.ID == c.ID && m.confirming.OnLate != nil {
			m.confirming.OnLate(ctx, d.record(), outbox.Confirmed{Group: c.Group, Outcome: string(c.Outcome), Sending: c.Sending, At: c.At})
			break
		}
	}
	return nil
}

// overdueBatch is how many messages one call of Promote decides about.
const overdueBatch = 200

// compensate decides about what is overdue in the lanes of the grants, whoever holds them. It reports how many
// messages wait again, and when the next one is overdue.
func (m *Memory) compensate(ctx context.Context, grants []outbox.Grant, pace *confirmation.Pace) (again int, next time.Duration, err error) {
	if err := m.enter(ctx, "Compensate"); err != nil {
		return 0, 0, err
	}
	defer m.mu.Unlock()
	now := m.now()
	var overdue []*memorySent
	for _, s := range m.sent {
		if !s.awaits() || !slices.ContainsFunc(grants, func(g outbox.Grant) bool { return g.Lane == s.Lane }) {
			continue
		}
		if wait := s.due.Sub(now); wait <= 0 {
			overdue = append(overdue, s)
		} else if next == 0 || wait < next {
			next = wait
		}
	}
	slices.SortStableFunc(overdue, func(a, b *memorySent) int { return cmp.Compare(a.due.UnixMicro(), b.due.UnixMicro()) })
	if len(overdue) > overdueBatch {
		overdue, next = overdue[:overdueBatch], 100*time.Millisecond
	}
	perSecond := m.confirming.PerSecond
	if perSecond == 0 {
		perSecond = 100
	}
	round := pace.Begin(now, perSecond)
	for _, s := range overdue {
		if err := m.decide(ctx, s, round); err != nil {
			return 0, 0, err
		}
	}
	round.Spend()
	return round.Again(), next, nil
}

func (m *Memory) decide(ctx context.Context, s *memorySent, round *confirmation.Round) error {
	if over, err := m.conclude(ctx, s); over || err != nil {
		return err
	}
	now := m.now()
	awaited := s.awaited(now)
	waits := slices.ContainsFunc(slices.Collect(maps.Values(m.rows)), func(r *memoryRow) bool { return r.ID == s.ID })
	d := round.Decide(awaited, awaited.Missing(m.said(s.ID)), m.heard(), waits)
	switch {
	case d.Dead != "":
		return m.bury(ctx, s, outbox.ReasonUnconfirmed, d.Dead)
	case d.Again:
		s.plan.Sendings = s.plan.Again(s.at.UnixMicro(), d.Counts)
		m.forget(s)
		m.again(s.Row, s.after, s.plan)
	default:
		s.due = now.Add(d.Later)
	}
	return nil
}

// heard is when each group last confirmed anything, in microseconds since 1970.
func (m *Memory) heard() map[string]int64 {
	heard := map[string]int64{}
	for _, words := range m.words {
		for group, w := range words {
			heard[group] = max(heard[group], w.at.UnixMicro())
		}
	}
	return heard
}

// again lets a message wait as a new row.
func (m *Memory) again(row outbox.Row, after outbox.After, plan outbox.Plan) {
	row.Metadata = maps.Clone(row.Metadata)
	if row.Metadata == nil {
		row.Metadata = message.Metadata{}
	}
	if after == outbox.AwaitConfirmation {
		plan.Stamp(row.Metadata)
	}
	m.last++
	row.Pos, row.Attempts, row.CreatedAt = m.last, 0, m.now()
	m.rows[m.last] = &memoryRow{Row: row, after: after, plan: plan, ready: true}
}

// Replay puts the last dead message with an id back into the outbox. False: there is none, or the id waits.
func (m *Memory) Replay(id string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, row := range m.rows {
		if row.ID == id {
			return false
		}
	}
	for i, d := range slices.Backward(m.dead) {
		if d.ID != id {
			continue
		}
		m.dead = slices.Delete(m.dead, i, i+1)
		for group, w := range m.words[id] {
			if w.Outcome != confirmation.Done {
				delete(m.words[id], group)
			}
		}
		d.plan.Sendings = d.plan.Anew()
		m.again(d.Row, d.after, d.plan)
		return true
	}
	return false
}
