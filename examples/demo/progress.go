package main

import (
	"sync"
	"time"
)

// progress is what is known of a run so far. It is safe for concurrent use.
type progress struct {
	mu  sync.Mutex
	now snapshot
}

// snapshot is progress at one moment.
type snapshot struct {
	Committed  int // orders, by the word of InTx
	RolledBack int

	Forwarded int // messages that reached the broker, each counted once
	Copies    int // messages that reached the broker a second, third ... time
	Injected  int // of these, the ones that we sent on purpose
	Disorder  int // first copies that came before an earlier order of their customer

	Kills    int
	LastKill time.Time

	Workers [2]worked
}

// worked is the report of one billing process.
type worked struct {
	Billed  int `json:"billed"`
	Dropped int `json:"dropped"` // duplicates
}

func (p *progress) update(change func(*snapshot)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change(&p.now)
}

func (p *progress) snapshot() snapshot {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.now
}

func (s snapshot) billed() int  { return s.Workers[0].Billed + s.Workers[1].Billed }
func (s snapshot) dropped() int { return s.Workers[0].Dropped + s.Workers[1].Dropped }
func (s snapshot) lag() int     { return max(0, s.Committed-s.billed()) }

// settled reports whether everything that reached the broker was handled. It may be true for a moment in mid-run.
func (s snapshot) settled() bool {
	return s.Forwarded >= s.Committed && s.Copies >= s.Injected && s.billed()+s.dropped() >= s.Forwarded+s.Copies
}
