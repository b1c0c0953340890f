package outboxtest

import (
	"context"

	"github.com/millrace-go/millrace/outbox"
)

// Settle implements outbox.Store.
func (m *Memory) Settle(ctx context.Context, grants []outbox.Grant, rows []outbox.Ref) (outbox.Settled, error) {
	s, awaiting, err := m.settle(ctx, grants, rows)
	if len(awaiting) > 0 {
		_ = m.judge(ctx, awaiting...) // if it fails, that is found when the confirmation is overdue
	}
	return s, err
}

func (m *Memory) settle(ctx context.Context, grants []outbox.Grant, rows []outbox.Ref) (s outbox.Settled, awaiting []string, err error) {
	if err := m.enter(ctx, "Settle"); err != nil {
		return s, nil, err
	}
	defer m.mu.Unlock()
	held := map[int]bool{}
	for _, g := range grants {
		held[g.Lane] = m.held(g)
		if !held[g.Lane] {
			s.Lost = append(s.Lost, g.Lane)
		}
	}
	for _, ref := range rows {
		row := m.rows[ref.Pos]
		switch {
		case row == nil || row.ID != ref.ID:
			s.Gone = append(s.Gone, ref.Pos)
		case held[row.Lane] && !m.locked[ref.Pos]:
			delete(m.rows, ref.Pos)
			m.remember(row)
			s.Done = append(s.Done, ref.Pos)
			if row.after == outbox.AwaitConfirmation {
				awaiting = append(awaiting, ref.ID)
			}
		}
	}
	return s, awaiting, nil
}

// Attempt implements outbox.Store.
func (m *Memory) Attempt(ctx context.Context, g outbox.Grant, r outbox.Ref, attempt int) (bool, error) {
	if err := m.enter(ctx, "Attempt"); err != nil {
		return false, err
	}
	defer m.mu.Unlock()
	row := m.row(g, r)
	if row == nil || row.Attempts != attempt-1 {
		return false, nil
	}
	row.Attempts = attempt
	return true, nil
}

// Refuse implements outbox.Store.
func (m *Memory) Refuse(ctx context.Context, g outbox.Grant, f outbox.Refused) (bool, error) {
	if err := m.enter(ctx, "Refuse"); err != nil {
		return false, err
	}
	defer m.mu.Unlock()
	row := m.row(g, f.Ref)
	if row == nil || row.Attempts > f.Attempt {
		return false, nil
	}
	m.refused++
	row.Attempts = f.Attempt
	row.ready = false
	row.retryAt = m.now().Add(f.RetryIn)
	if f.Stop && f.Key != "" {
		m.stops[memoryStop{g.Lane, f.Destination, f.Key}] = f.Pos
	}
	return true, nil
}

// Hold implements outbox.Store.
func (m *Memory) Hold(ctx context.Context, g outbox.Grant, destination string, rows []outbox.Ref) (bool, error) {
	if err := m.enter(ctx, "Hold"); err != nil {
		return false, err
	}
	defer m.mu.Unlock()
	if !m.held(g) {
		return false, nil
	}
	for _, ref := range rows {
		row := m.row(g, ref)
		if row == nil {
			continue
		}
		if stop, stopped := m.stop(g.Lane, destination, row.Key); stopped && stop < row.Pos {
			row.ready, row.held, row.heldFor = false, true, destination
		}
	}
	return true, nil
}

// Lift implements outbox.Store.
func (m *Memory) Lift(ctx context.Context, g outbox.Grant, destination, key string) (bool, error) {
	if err := m.enter(ctx, "Lift"); err != nil {
		return false, err
	}
	defer m.mu.Unlock()
	if !m.held(g) {
		return false, nil
	}
	m.lift(g.Lane, destination, key)
	return true, nil
}

// Park implements outbox.Store.
func (m *Memory) Park(ctx context.Context, g outbox.Grant, f outbox.Refused) (bool, error) {
	if err := m.enter(ctx, "Park"); err != nil {
		return false, err
	}
	defer m.mu.Unlock()
	row := m.row(g, f.Ref)
	if row == nil {
		return false, nil
	}
	delete(m.rows, f.Pos)
	row.Attempts = f.Attempt
	m.dead = append(m.dead, &memoryDead{Dead{Row: row.Row, Why: f}, row.after, row.plan})
	if m.stops[memoryStop{g.Lane, f.Destination, f.Key}] == f.Pos {
		m.lift(g.Lane, f.Destination, f.Key)
	}
	return true, nil
}

func (m *Memory) lift(lane int, destination, key string) {
	delete(m.stops, memoryStop{lane, destination, key})
	for _, row := range m.rows {
		if row.Lane == lane && row.held && row.heldFor == destination && row.Key == key {
			row.ready, row.held = true, false
		}
	}
}

// stop finds the stop of a key. One whose message is gone holds nothing.
func (m *Memory) stop(lane int, destination, key string) (pos int64, stopped bool) {
	pos, stopped = m.stops[memoryStop{lane, destination, key}]
	return pos, stopped && m.rows[pos] != nil
}
