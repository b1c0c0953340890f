// Package gate lets the writers of a SQLite file in one after the other, first come first served.
//
// SQLite itself has one writer at a time too, but it lets the waiters poll: beside one busy writer
// another may wait until its busy timeout ends. Here they queue: within the process in a list, between
// processes for locks on two files beside the database. Whoever holds the second file ("-gate-next")
// is next for the first ("-gate"), so that a process that releases and comes back at once cannot
// overtake one that waits.
package gate

import (
	"container/list"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/gofrs/flock"
)

// Gate is the entrance to one database.
type Gate struct {
	mu      sync.Mutex
	waiting list.List // of chan error, closed for whom the gate opens
	busy    bool      // held, or being locked for the first who waits
	gate    *flock.Flock
	next    *flock.Flock
}

// gates holds one Gate for each file, because all handles of a process must meet at the same one.
var gates sync.Map // canonical path -> *Gate

// For returns the Gate of the database file; all callers of a process get the same one. An empty path
// (a database in memory) gets a new Gate, which works within the process alone.
func For(path string) *Gate {
	if path == "" {
		return new(Gate)
	}
	if abs, err := filepath.Abs(path); err == nil {
		path = abs
	}
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	mode := fs.FileMode(0o644)
	if info, err := os.Stat(path); err == nil {
		mode = info.Mode().Perm() // whoever may open the database may pass the gate
	}
	g, _ := gates.LoadOrStore(path, &Gate{
		gate: flock.New(path+"-gate", flock.SetPermissions(mode)),
		next: flock.New(path+"-gate-next", flock.SetPermissions(mode)),
	})
	return g.(*Gate)
}

// Acquire waits until it is the caller's turn, or for ctx. The caller holds the gate until it calls
// release, once.
func (g *Gate) Acquire(ctx context.Context) (release func(), err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	turn := make(chan error, 1)
	g.mu.Lock()
	place := g.waiting.PushBack(turn)
	idle := !g.busy
	g.busy = true
	g.mu.Unlock()
	if idle {
		g.open()
	}
	select {
	case err = <-turn:
	case <-ctx.Done():
		g.mu.Lock()
		select {
		case err = <-turn: // it came after all, and is passed on
			g.mu.Unlock()
			if err == nil {
				g.pass()
			}
		default:
			g.waiting.Remove(place)
			g.mu.Unlock()
		}
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, err
	}
	return sync.OnceFunc(g.pass), nil
}

// open takes the file locks for the first who waits. If they are not free at once, it leaves the
// waiting to a goroutine, which cannot be interrupted: when all who waited have given up by then, it
// gives the locks back.
func (g *Gate) open() {
	if g.gate == nil {
		g.admit(nil)
		return
	}
	if got, err := g.next.TryLock(); got && err == nil {
		if got, err = g.gate.TryLock(); got && err == nil {
			g.admit(g.next.Unlock())
			return
		}
		go func() { g.admit(g.lockGate()) }()
		return
	}
	go func() {
		err := g.next.Lock()
		if err == nil {
			err = g.lockGate()
		}
		g.admit(err)
	}()
}

// lockGate waits for the gate while holding the place before it, and frees that place.
func (g *Gate) lockGate() error {
	err := g.gate.Lock()
	if e := g.next.Unlock(); err == nil {
		err = e
	}
	return err
}

// admit hands the locked gate, or the error, to the first who waits.
func (g *Gate) admit(err error) {
	if err != nil {
		err = fmt.Errorf("gate: lock beside the database file: %w", err)
	}
	g.mu.Lock()
	first := g.waiting.Front()
	if first == nil {
		g.mu.Unlock()
		g.pass()
		return
	}
	g.waiting.Remove(first).(chan error) <- err
	g.mu.Unlock()
	if err != nil {
		g.pass()
	}
}

// pass frees the file locks, and takes them anew if somebody waits.
func (g *Gate) pass() {
	if g.gate != nil {
		_ = g.gate.Unlock() // closes the file, which frees the lock in any case
	}
	g.mu.Lock()
	g.busy = g.waiting.Len() > 0
	again := g.busy
	g.mu.Unlock()
	if again {
		g.open()
	}
}
