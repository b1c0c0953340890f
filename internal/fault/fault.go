// Package fault marks the places in production code where a test makes the process die.
//
// A place is named once, in the code:
//
//	fault.Point("forwarder.published")
//
// and costs one atomic load as long as nothing is armed. A test in the same process arms it with
// Arm; for a child process the environment does it:
//
//	MILLRACE_FAULT=forwarder.published:3:kill
//
// kills the process with SIGKILL when it comes by for the third time. Several places are separated
// by commas. The package imports nothing of testing, so that production binaries do not either.
package fault

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
)

// Variable is the environment variable that arms points in a process from outside.
const Variable = "MILLRACE_FAULT"

// What Variable can ask for.
const (
	Kill  = "kill"  // SIGKILL to the own process: no deferred function runs
	Panic = "panic" // a panic in the goroutine that reached the point
)

// The three states of registry.state. The zero value means that the environment was not read yet.
const (
	unread int32 = iota
	idle
	armed
)

type arming struct {
	left   int
	action func()
}

type registry struct {
	state  atomic.Int32
	mu     sync.Mutex
	points map[string][]*arming
}

// points is the one piece of state that the places and the tests share: a place has nothing else
// that both could hold.
var points registry

// Point is a place where a test may interfere. It does nothing unless it was armed. Safe for
// concurrent use.
func Point(name string) {
	if points.state.Load() == idle {
		return
	}
	points.hit(name)
}

// Arm runs action when the point is reached for the n-th time from now, counted from 1, and never
// after. The action runs in the goroutine that reached the point, which goes on when it returns: an
// action that blocks holds it there. Disarm takes the action back if it has not begun; calling it
// again does nothing. Arm panics if n is less than 1.
func Arm(name string, n int, action func()) (disarm func()) {
	if n < 1 {
		panic(fmt.Sprintf("fault: arm %q: n is %d, want 1 or more", name, n))
	}
	points.mu.Lock()
	defer points.mu.Unlock()
	points.readEnvironment()
	a := points.add(name, n, action)
	return func() {
		points.mu.Lock()
		defer points.mu.Unlock()
		points.remove(name, a)
	}
}

// Env is the entry for a child's environment that arms a point there: what is Kill or Panic.
func Env(name string, n int, what string) string {
	return fmt.Sprintf("%s=%s:%d:%s", Variable, name, n, what)
}

func (r *registry) hit(name string) {
	for _, action := range r.due(name) {
		action()
	}
}

func (r *registry) due(name string) []func() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.readEnvironment()
	var due []func()
	for _, a := range r.points[name] {
		if a.left--; a.left == 0 {
			due = append(due, a.action)
		}
	}
	for _, a := range append([]*arming(nil), r.points[name]...) {
		if a.left == 0 {
			r.remove(name, a)
		}
	}
	return due
}

func (r *registry) add(name string, n int, action func()) *arming {
	if r.points == nil {
		r.points = make(map[string][]*arming)
	}
	a := &arming{left: n, action: action}
	r.points[name] = append(r.points[name], a)
	r.state.Store(armed)
	return a
}

func (r *registry) remove(name string, a *arming) {
	list := r.points[name]
	for i := range list {
		if list[i] == a {
			list = append(list[:i:i], list[i+1:]...)
			break
		}
	}
	r.points[name] = list
	if len(list) == 0 {
		delete(r.points, name)
	}
	if len(r.points) == 0 {
		r.state.Store(idle)
	}
}

// readEnvironment arms what Variable asks for, on the first call. A value that cannot be read
// panics: a crash test that injects nothing must not look like one that passed.
func (r *registry) readEnvironment() {
	if r.state.Load() != unread {
		return
	}
	r.state.Store(idle)
	value := os.Getenv(Variable)
	if value == "" {
		return
	}
	for entry := range strings.SplitSeq(value, ",") {
		name, n, action, err := parse(entry)
		if err != nil {
			panic(fmt.Sprintf("fault: %s: %v", Variable, err))
		}
		r.add(name, n, action)
	}
}

func parse(entry string) (name string, n int, action func(), err error) {
	parts := strings.Split(entry, ":")
	if len(parts) != 3 || parts[0] == "" {
		return "", 0, nil, fmt.Errorf("%q is not name:n:kill or name:n:panic", entry)
	}
	name = parts[0]
	n, err = strconv.Atoi(parts[1])
	if err != nil || n < 1 {
		return "", 0, nil, fmt.Errorf("%q: %q is not a count of 1 or more", entry, parts[1])
	}
	switch parts[2] {
	case Kill:
		return name, n, killSelf, nil
	case Panic:
		return name, n, func() { panic("fault: " + name) }, nil
	}
	return "", 0, nil, fmt.Errorf("%q: %q is neither %s nor %s", entry, parts[2], Kill, Panic)
}

func killSelf() {
	self, err := os.FindProcess(os.Getpid())
	if err == nil {
		err = self.Kill()
	}
	if err != nil {
		panic(fmt.Sprintf("fault: kill: %v", err))
	}
	select {} // the signal is on its way; nothing after the point may happen
}
