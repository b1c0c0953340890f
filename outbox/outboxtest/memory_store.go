package outboxtest

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/millrace-go/millrace/internal/confirmation"
	"github.com/millrace-go/millrace/outbox"
)

var _ outbox.Store = (*Memory)(nil)

// Check implements outbox.Store.
func (m *Memory) Check(ctx context.Context) error {
	if err := m.enter(ctx, "Check"); err != nil {
		return err
	}
	m.mu.Unlock()
	return nil
}

// Join implements outbox.Store.
func (m *Memory) Join(ctx context.Context, replica string, lease time.Duration) error {
	if err := m.enter(ctx, "Join"); err != nil {
		return err
	}
	defer m.mu.Unlock()
	if _, there := m.replicas[replica]; there {
		return errors.New("outboxtest: replica " + replica + " is registered already")
	}
	m.replicas[replica] = memoryReplica{expires: m.now().Add(lease)}
	return nil
}

// Renew implements outbox.Store.
func (m *Memory) Renew(ctx context.Context, replica string, beat int64, lease time.Duration, down []string) (bool, error) {
	if err := m.enter(ctx, "Renew"); err != nil {
		return false, err
	}
	defer m.mu.Unlock()
	r, there := m.replicas[replica]
	if !there || r.beat != beat {
		return false, nil
	}
	m.replicas[replica] = memoryReplica{beat: beat + 1, expires: m.now().Add(lease), down: slices.Clone(down)}
	return true, nil
}

// Leave implements outbox.Store.
func (m *Memory) Leave(ctx context.Context, replica string) error {
	if err := m.enter(ctx, "Leave"); err != nil {
		return err
	}
	defer m.mu.Unlock()
	if _, there := m.replicas[replica]; there {
		for i := range m.lanes {
			if m.lanes[i].owner == replica {
				m.lanes[i].owner = ""
			}
		}
	}
	delete(m.replicas, replica)
	return nil
}

// Sweep implements outbox.Store.
func (m *Memory) Sweep(ctx context.Context, replica string) (int, error) {
	if err := m.enter(ctx, "Sweep"); err != nil {
		return 0, err
	}
	defer m.mu.Unlock()
	n := 0
	for id, r := range m.replicas {
		if id != replica && r.expires.Before(m.now()) {
			delete(m.replicas, id)
			n++
		}
	}
	return n, nil
}

// Survey implements outbox.Store.
func (m *Memory) Survey(ctx context.Context) (outbox.Survey, error) {
	if err := m.enter(ctx, "Survey"); err != nil {
		return outbox.Survey{}, err
	}
	defer m.mu.Unlock()
	var s outbox.Survey
	for _, r := range m.replicas {
		if !r.expires.Before(m.now()) {
			s.Replicas++
			slices.Sort(r.down)
			for _, name := range slices.Compact(r.down) {
				if s.Down == nil {
					s.Down = map[string]int{}
				}
				s.Down[name]++
			}
		}
	}
	for _, l := range m.lanes {
		if _, lives := m.replicas[l.owner]; !lives {
			s.FreeLanes++
		}
	}
	return s, nil
}

// Claim implements outbox.Store.
func (m *Memory) Claim(ctx context.Context, replica string, n int) ([]outbox.Grant, error) {
	if err := m.enter(ctx, "Claim"); err != nil {
		return nil, err
	}
	defer m.mu.Unlock()
	if _, there := m.replicas[replica]; !there {
		return nil, nil
	}
	var grants []outbox.Grant
	for i := range m.lanes {
		l := &m.lanes[i]
		if _, lives := m.replicas[l.owner]; lives || len(grants) == n {
			continue
		}
		if l.owner != "" {
			l.crashes++
		}
		l.owner = replica
		l.epoch++
		grants = append(grants, outbox.Grant{Lane: i, Epoch: l.epoch, Crashes: l.crashes})
	}
	return grants, nil
}

// Release implements outbox.Store.
func (m *Memory) Release(ctx context.Context, grants []outbox.Grant) error {
	if err := m.enter(ctx, "Release"); err != nil {
		return err
	}
	defer m.mu.Unlock()
	for _, g := range grants {
		if m.held(g) {
			m.lanes[g.Lane].owner = ""
		}
	}
	return nil
}

// Calm implements outbox.Store.
func (m *Memory) Calm(ctx context.Context, g outbox.Grant) error {
	if err := m.enter(ctx, "Calm"); err != nil {
		return err
	}
	defer m.mu.Unlock()
	if m.held(g) {
		m.lanes[g.Lane].crashes = 0
	}
	return nil
}

// Topics implements outbox.Store.
func (m *Memory) Topics(ctx context.Context) (outbox.Topics, error) {
	if err := m.enter(ctx, "Topics"); err != nil {
		return outbox.Topics{}, err
	}
	defer m.mu.Unlock()
	var t outbox.Topics
	for _, r := range m.rows {
		if r.ready && !slices.Contains(t.Ready, r.Topic) && !m.pauses[memoryPause{outbox.PausedTopic, r.Topic}] {
			t.Ready = append(t.Ready, r.Topic)
		}
	}
	for p := range m.pauses {
		if p.kind == outbox.PausedDestination {
			t.Paused = append(t.Paused, p.name)
		}
	}
	slices.Sort(t.Ready)
	slices.Sort(t.Paused)
	return t, nil
}

// Mark implements outbox.Store.
func (m *Memory) Mark(ctx context.Context, grants []outbox.Grant, rows []outbox.Ref) ([]int64, error) {
	if err := m.enter(ctx, "Mark"); err != nil {
		return nil, err
	}
	defer m.mu.Unlock()
	var marked []int64
	for _, r := range rows {
		row := m.rows[r.Pos]
		if row == nil || row.ID != r.ID || row.schedule != "" && m.locked[r.Pos] {
			continue
		}
		if slices.ContainsFunc(grants, func(g outbox.Grant) bool { return g.Lane == row.Lane && m.held(g) }) {
			row.sending = true
			marked = append(marked, r.Pos)
		}
	}
	return marked, nil
}

// Read implements outbox.Store.
func (m *Memory) Read(ctx context.Context, q outbox.Read) ([]outbox.Row, error) {
	if err := m.enter(ctx, "Read"); err != nil {
		return nil, err
	}
	defer m.mu.Unlock()
	excluded := make(map[int64]bool, len(q.Exclude))
	for _, pos := range q.Exclude {
		excluded[pos] = true
	}
	var rows []outbox.Row
	bytes := 0
	for _, r := range m.byPosition() {
		if !r.ready || excluded[r.Pos] || !slices.Contains(q.Lanes, r.Lane) || !slices.Contains(q.Topics, r.Topic) {
			continue
		}
		if r.Key != "" && slices.Contains(q.BusyKeys, r.Key) {
			continue
		}
		bytes += r.Size
		if len(rows) == q.MaxRows || len(rows) > 0 && bytes > q.MaxBytes {
			break
		}
		row := r.Row
		row.Metadata, row.Payload = maps.Clone(r.Metadata), slices.Clone(r.Payload)
		rows = append(rows, row)
	}
	return rows, nil
}

// Promote implements outbox.Store.
func (m *Memory) Promote(ctx context.Context, grants []outbox.Grant) (outbox.Promotion, error) {
	return m.promoteAt(ctx, grants, &m.pace)
}

// promoteAt is Promote for the process that has this pace.
func (m *Memory) promoteAt(ctx context.Context, grants []outbox.Grant, pace *confirmation.Pace) (outbox.Promotion, error) {
	p, err := m.promote(ctx, grants)
	if err != nil {
		return p, err
	}
	again, next, err := m.compensate(ctx, grants, pace)
	p.Ready += again
	if next > 0 && (p.Next == 0 || next < p.Next) {
		p.Next = next
	}
	return p, err
}

func (m *Memory) promote(ctx context.Context, grants []outbox.Grant) (outbox.Promotion, error) {
	if err := m.enter(ctx, "Promote"); err != nil {
		return outbox.Promotion{}, err
	}
	defer m.mu.Unlock()
	held := map[int]bool{}
	for _, g := range grants {
		held[g.Lane] = m.held(g)
	}
	var p outbox.Promotion
	for _, r := range m.rows {
		if r.ready || !held[r.Lane] {
			continue
		}
		if stop, stopped := m.stop(r.Lane, r.heldFor, r.Key); r.held && stopped && stop < r.Pos {
			continue
		}
		due := max(r.deliverAt.Sub(m.now()), r.retryAt.Sub(m.now()))
		if due > 0 {
			if p.Next == 0 || due < p.Next {
				p.Next = due
			}
			continue
		}
		r.ready, r.held = true, false
		p.Ready++
	}
	return p, nil
}

// Stops implements outbox.Store.
func (m *Memory) Stops(ctx context.Context, lanes []int) ([]outbox.Stop, error) {
	if err := m.enter(ctx, "Stops"); err != nil {
		return nil, err
	}
	defer m.mu.Unlock()
	var stops []outbox.Stop
	for s, pos := range m.stops {
		if _, stopped := m.stop(s.lane, s.destination, s.key); stopped && slices.Contains(lanes, s.lane) {
			stops = append(stops, outbox.Stop{Lane: s.lane, Destination: s.destination, Key: s.key, Pos: pos})
		}
	}
	return stops, nil
}
