package outbox

import (
	"fmt"
	"math/bits"
	"sync"
	"sync/atomic"
	"time"
)

// sizeAge is how old the knowledge of a table's size may be.
const sizeAge = time.Second

// tableSize knows about how large a table is: to a factor of two, and as it was a moment ago.
type tableSize struct {
	text atomic.Pointer[string]

	mu    sync.Mutex
	asked time.Time
}

// tag returns a comment for the size. One caller in a second asks for it; if that fails, the last
// answer stays.
func (s *tableSize) tag(ask func() (pages int64, err error)) string {
	if s.mu.TryLock() {
		if time.Since(s.asked) >= sizeAge {
			s.asked = time.Now()
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
