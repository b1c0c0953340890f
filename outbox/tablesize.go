package outbox

import (
	"fmt"
	"math/bits"
	"sync"
	"sync/atomic"
	"time"
)

// sizeAge is how old the knowledge of a table's size may be, and idleSizeAge while fewer than busySize
// statements were made with it: a table that nobody works on hardly grows.
const (
	sizeAge     = time.Second
	idleSizeAge = 10 * time.Second
	busySize    = 50
)

// tableSize knows about how large a table is: to a factor of two, and as it was a moment ago.
type tableSize struct {
	text atomic.Pointer[string]
	uses atomic.Int64 // since it was asked for

	mu    sync.Mutex
	asked time.Time
}

// tag returns a comment for the size. One caller in a second asks for it, in ten seconds if there are few; if
// that fails, the last answer stays.
func (s *tableSize) tag(ask func() (pages int64, err error)) string {
	uses := s.uses.Add(1)
	if s.mu.TryLock() {
		if age := time.Since(s.asked); age >= idleSizeAge || age >= sizeAge && uses >= busySize {
			s.asked = time.Now()
			s.uses.Store(0)
			if pages, err := ask(); err == nil {
				text := fmt.Sprintf(" /* 2^%d pages */", bits.Len64(uint64(max(pages, 0))))
				s.text.Store(&text)
			}
		}
		s.mu.Unlock()
	}
	if text := s.text.Load(); text != nil {
		return *text
	}
	return ""
}
