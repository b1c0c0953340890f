package store

import (
	"context"
	"errors"
	"slices"
	"time"
)

// Put implements Dead.
func (m *Memory) Put(ctx context.Context, l Letter) error {
	if err := errors.Join(ctx.Err(), l.Check()); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.buried(l.Entry) {
		return nil
	}
	m.serial++
	l.ID, l.At, l.Size, l.Entry = m.serial, time.Now(), len(l.Payload), copied(l.Entry)
	m.dead = append(m.dead, l)
	return nil
}

func (m *Memory) buried(e Entry) bool {
	return slices.ContainsFunc(m.dead, func(d Letter) bool { return d.Group == e.Group && d.MessageID == e.MessageID })
}

// List implements Dead.
func (m *Memory) List(ctx context.Context, f Filter, after int64, limit int) ([]Letter, error) {
	if err := errors.Join(ctx.Err(), CheckGroup(f.Group)); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var page []Letter
	for _, l := range m.dead {
		if l.ID > after && len(page) < limit && f.Match(l) {
			l.Payload = nil
			l.Entry = copied(l.Entry)
			page = append(page, l)
		}
	}
	return page, nil
}

// Get implements Dead.
func (m *Memory) Get(ctx context.Context, group string, id int64) (Letter, error) {
	if err := errors.Join(ctx.Err(), CheckGroup(group)); err != nil {
		return Letter{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	i := m.letter(group, id)
	if i < 0 {
		return Letter{}, ErrNotFound
	}
	l := m.dead[i]
	l.Entry = copied(l.Entry)
	return l, nil
}

func (m *Memory) letter(group string, id int64) int {
	return slices.IndexFunc(m.dead, func(l Letter) bool { return l.Group == group && l.ID == id })
}

// Decide implements Dead.
func (m *Memory) Decide(ctx context.Context, d Decision) ([]int64, error) {
	if err := errors.Join(ctx.Err(), d.Check()); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var done []int64
	for _, id := range d.Letters {
		i := m.letter(d.Group, id)
		if i < 0 {
			continue
		}
		l := m.dead[i]
		m.dead = slices.Delete(m.dead, i, i+1)
		done = append(done, id)
		a := Audit{At: time.Now(), Action: d.Action, Group: d.Group, Letter: id, MessageID: l.MessageID, Who: d.Who, Why: d.Why}
		e := l.Entry
		if d.Edited != nil {
			e, a.NewID = *d.Edited, d.Edited.MessageID
		}
		if d.Action == Replayed {
			m.revive(e)
		}
		m.serial++
		a.ID = m.serial
		m.audit = append(m.audit, a)
	}
	return done, nil
}

// revive makes a message due with no attempts and no history. Whoever holds the copy that is there holds it no more.
func (m *Memory) revive(e Entry) {
	e.Attempts, e.Returns, e.History = 0, 0, nil
	k := m.entries[name{e.Group, e.MessageID}]
	if k == nil {
		m.add(e, 0)
		return
	}
	k.Attempts, k.Returns, k.History, k.owner = 0, 0, nil, ""
	if !k.blocked {
		k.due = time.Now()
	}
}

// Audit implements Dead.
func (m *Memory) Audit(ctx context.Context, group string, after int64, limit int) ([]Audit, error) {
	if err := errors.Join(ctx.Err(), CheckGroup(group)); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var page []Audit
	for _, a := range m.audit {
		if a.Group == group && a.ID > after && len(page) < limit {
			page = append(page, a)
		}
	}
	return page, nil
}
