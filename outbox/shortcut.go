package outbox

import "sync/atomic"

// shortcut is a cheaper way to do something that does not always get there. Where it did not, it is left alone for a
// while.
type shortcut struct{ rest atomic.Int32 }

// shortcutRest is how many times the long way is taken then.
const shortcutRest = 32

// worth reports whether the shortcut is to be tried.
func (s *shortcut) worth() bool { return s.rest.Load() <= 0 || s.rest.Add(-1) < 0 }

// failed notes that it did not get there.
func (s *shortcut) failed() { s.rest.Store(shortcutRest) }
