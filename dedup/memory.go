package dedup

import (
	"context"
	"sync"
	"time"
)

// Memory is a Store inside the process: for tests, and for services that run as one process and may
// forget when it ends. It starts no goroutine; forgotten records are removed by later claims. The zero
// value is ready for use.
type Memory struct {
	mu      sync.Mutex
	records map[Key]*record
	sweepAt int // size at which the next sweep is due
}

var _ Store = (*Memory)(nil)

type state int

const (
	claimed state = iota + 1
	released
	done
)

type record struct {
	state    state
	owner    string
	fence    int64
	attempts int
	digest   string
	result   []byte
	lease    time.Time
	expires  time.Time
}

// Check always returns nil.
func (m *Memory) Check(context.Context) error { return nil }

// Claim implements Store.
func (m *Memory) Claim(ctx context.Context, key Key, req Request) (Answer, error) {
	if err := firstError(ctx.Err(), key.Check(), req.Check()); err != nil {
		return Answer{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()

	now := time.Now()
	r := m.find(key, now)
	if r == nil {
		r = m.add(key, now)
	}
	if r.digest != "" && req.Digest != "" && r.digest != req.Digest {
		return Answer{Verdict: Reused}, nil
	}
	mine := r.state == claimed && r.owner == req.Owner
	switch {
	case r.state == done:
		return Answer{Verdict: Handled, Result: append([]byte(nil), r.result...)}, nil
	case r.state == claimed && !mine && now.Before(r.lease):
		return Answer{Verdict: Busy, Remaining: r.lease.Sub(now)}, nil
	case !mine:
		r.fence++
		r.attempts++
	}
	if r.digest == "" {
		r.digest = req.Digest
	}
	r.state, r.owner = claimed, req.Owner
	r.lease, r.expires = now.Add(req.Lease), now.Add(req.TTL)
	return Answer{Verdict: Claimed, Fence: r.fence, Attempts: r.attempts}, nil
}

// Renew implements Store.
func (m *Memory) Renew(ctx context.Context, key Key, owner string, lease time.Duration) (bool, error) {
	if err := firstError(ctx.Err(), key.Check()); err != nil {
		return false, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()

	now := time.Now()
	r := m.find(key, now)
	if r == nil || r.state != claimed || r.owner != owner {
		return false, nil
	}
	r.lease = now.Add(lease)
	// The record outlives the lease, or a claim of something handled for longer than it is
	// remembered would vanish under its owner.
	if least := now.Add(2 * lease); r.expires.Before(least) {
		r.expires = least
	}
	return true, nil
}

// Done implements Store.
func (m *Memory) Done(ctx context.Context, key Key, owner string, result []byte, ttl time.Duration) (Mark, error) {
	if err := firstError(ctx.Err(), key.Check(), CheckDone(owner, result, ttl)); err != nil {
		return 0, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()

	now := time.Now()
	r, mark := m.find(key, now), Marked
	switch {
	case r == nil:
		r, mark = m.add(key, now), Recreated
	case r.owner != owner:
		return Lost, nil
	}
	r.state, r.owner = done, owner
	r.result = append([]byte(nil), result...)
	r.expires = now.Add(ttl)
	return mark, nil
}

// Release implements Store.
func (m *Memory) Release(ctx context.Context, key Key, owner string, fresh bool) error {
	if err := firstError(ctx.Err(), key.Check()); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()

	r := m.find(key, time.Now())
	if r == nil || r.state != claimed || r.owner != owner {
		return nil
	}
	r.state, r.owner = released, ""
	if fresh {
		r.attempts = 0
	}
	return nil
}

func (m *Memory) find(key Key, now time.Time) *record {
	r := m.records[key]
	if r != nil && !now.Before(r.expires) {
		delete(m.records, key)
		return nil
	}
	return r
}

// add makes a record and, each time the map has doubled since, removes what is forgotten: constant
// cost per record without a goroutine to stop.
func (m *Memory) add(key Key, now time.Time) *record {
	if m.records == nil {
		m.records = make(map[Key]*record)
	}
	if len(m.records) >= m.sweepAt {
		for k, r := range m.records {
			if !now.Before(r.expires) {
				delete(m.records, k)
			}
		}
		m.sweepAt = 2*len(m.records) + 64
	}
	r := &record{}
	m.records[key] = r
	return r
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
