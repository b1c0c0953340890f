package store

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"
)

// Memory is a Store inside the process, for tests: what is in it is gone with the process. It starts no
// goroutine. The zero value is ready for use.
type Memory struct {
	mu      sync.Mutex
	serial  int64
	entries map[name]*kept
	dead    []Letter
	audit   []Audit
}

var _ Store = (*Memory)(nil)

type name struct{ group, id string }

// kept is a delayed message. It is held if it has an owner and is not due.
type kept struct {
	Entry
	pos     int64
	due     time.Time
	blocked bool
	owner   string
}

func copied(e Entry) Entry {
	e.Metadata = maps.Clone(e.Metadata)
	e.Payload = slices.Clone(e.Payload)
	e.History = slices.Clone(e.History)
	return e
}

// Check always returns nil.
func (m *Memory) Check(context.Context) error { return nil }

// Admit implements Delayed.
func (m *Memory) Admit(ctx context.Context, e Entry) (Admission, error) {
	if err := errors.Join(ctx.Err(), e.Check()); err != nil {
		return 0, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.entries[name{e.Group, e.MessageID}] != nil:
		return Stored, nil
	case m.buried(e):
		return Buried, nil
	case m.first(e.Group, e.OrderKey) == nil:
		return Open, nil
	}
	e.Attempts, e.Returns, e.History = 0, 0, nil
	m.add(e, 0)
	return Behind, nil
}

// first is the message of an order key that was stored first.
func (m *Memory) first(group, key string) (first *kept) {
	if key == "" {
		return nil
	}
	for _, k := range m.entries {
		if k.Group == group && k.OrderKey == key && (first == nil || k.pos < first.pos) {
			first = k
		}
	}
	return first
}

func (m *Memory) add(e Entry, delay time.Duration) {
	if m.entries == nil {
		m.entries = make(map[name]*kept)
	}
	m.serial++
	m.entries[name{e.Group, e.MessageID}] = &kept{
		Entry: copied(e), pos: m.serial, due: time.Now().Add(delay), blocked: m.first(e.Group, e.OrderKey) != nil,
	}
}

// Defer implements Delayed.
func (m *Memory) Defer(ctx context.Context, e Entry, delay time.Duration) error {
	if err := errors.Join(ctx.Err(), e.Check()); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if k := m.entries[name{e.Group, e.MessageID}]; k != nil {
		k.Attempts = max(k.Attempts, e.Attempts)
		return nil
	}
	m.add(e, delay)
	return nil
}

// Take implements Delayed.
func (m *Memory) Take(ctx context.Context, t Take) ([]Entry, time.Duration, error) {
	if err := errors.Join(ctx.Err(), t.Check()); err != nil {
		return nil, 0, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var waiting []*kept
	for _, k := range m.entries {
		if k.Group == t.Group && !k.blocked {
			waiting = append(waiting, k)
		}
	}
	slices.SortFunc(waiting, func(a, b *kept) int { return a.due.Compare(b.due) })
	var taken []Entry
	now := time.Now()
	for _, k := range waiting {
		if wait := k.due.Sub(now); wait > 0 || len(taken) == t.Limit {
			return taken, max(wait, 0), nil
		}
		k.owner, k.due = t.Owner, now.Add(t.Lease)
		taken = append(taken, copied(k.Entry))
	}
	return taken, -1, nil
}

// held is the entry if the owner holds it, also when the lease has ended and nobody took over.
func (m *Memory) held(e Entry, owner string) *kept {
	if k := m.entries[name{e.Group, e.MessageID}]; k != nil && owner != "" && k.owner == owner {
		return k
	}
	return nil
}

// change calls f with the entry if the owner holds it.
func (m *Memory) change(ctx context.Context, e Entry, owner string, f func(*kept)) (bool, error) {
	if err := errors.Join(ctx.Err(), e.Check()); err != nil {
		return false, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	k := m.held(e, owner)
	if k != nil {
		f(k)
	}
	return k != nil, nil
}

// Renew implements Delayed.
func (m *Memory) Renew(ctx context.Context, e Entry, owner string, lease time.Duration) (bool, error) {
	return m.change(ctx, e, owner, func(k *kept) { k.due = time.Now().Add(lease) })
}

// Begin implements Delayed.
func (m *Memory) Begin(ctx context.Context, e Entry, owner string, attempt int) (bool, error) {
	return m.change(ctx, e, owner, func(k *kept) { k.Attempts = max(k.Attempts, attempt) })
}

// Return implements Delayed.
func (m *Memory) Return(ctx context.Context, e Entry, owner string, delay time.Duration) (bool, error) {
	return m.change(ctx, e, owner, func(k *kept) {
		k.Attempts, k.Returns, k.History = e.Attempts, e.Returns, slices.Clone(e.History)
		k.owner, k.due = "", time.Now().Add(delay)
	})
}

// Forget implements Delayed.
func (m *Memory) Forget(ctx context.Context, e Entry, owner string) (bool, error) {
	return m.change(ctx, e, owner, func(k *kept) {
		delete(m.entries, name{k.Group, k.MessageID})
		if next := m.first(k.Group, k.OrderKey); next != nil && next.blocked {
			next.blocked, next.due = false, time.Now()
		}
	})
}

// Stats implements Delayed.
func (m *Memory) Stats(ctx context.Context, group string) (Stats, error) {
	if err := errors.Join(ctx.Err(), CheckGroup(group)); err != nil {
		return Stats{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var s Stats
	now := time.Now()
	for _, k := range m.entries {
		if k.Group != group {
			continue
		}
		s.Stored++
		switch {
		case k.blocked:
			s.Blocked++
		case !k.due.After(now):
			s.Due++
		case k.owner != "":
			s.Held++
		}
	}
	for _, l := range m.dead {
		if l.Group == group {
			s.Dead++
		}
	}
	return s, nil
}
