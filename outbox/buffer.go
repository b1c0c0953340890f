package outbox

import (
	"context"
	"fmt"
	"sync"

	"github.com/millrace-go/millrace/internal/txn"
)

// maxBuffer is the size from which the messages of a transaction are inserted without waiting for
// COMMIT.
const maxBuffer = 1 << 20

// buffer is what one transaction has published and not yet inserted.
type buffer struct {
	dialect txn.Dialect
	prefix  string

	mu      sync.Mutex
	entries []entry
	ids     map[string]struct{}
	bytes   int
	lanes   uint64 // of all that was published, inserted or not
}

// add buffers entries; full means that it is time to flush.
func (b *buffer) add(entries []entry) (full bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, e := range entries {
		if _, there := b.ids[e.id]; there {
			return false, fmt.Errorf("%w: id %q was published before in this transaction", ErrDuplicateMessage, e.id)
		}
	}
	if b.ids == nil {
		b.ids = make(map[string]struct{}, len(entries))
	}
	for _, e := range entries {
		b.ids[e.id] = struct{}{}
		b.bytes += e.size()
	}
	b.entries = append(b.entries, entries...)
	b.lanes |= lanesOf(entries)
	return b.bytes > maxBuffer || len(b.entries) > maxRows, nil
}

// insert inserts entries at once.
func (b *buffer) insert(ctx context.Context, tx *txn.Tx, entries []entry) error {
	b.mu.Lock()
	b.lanes |= lanesOf(entries)
	b.mu.Unlock()
	for _, s := range insertions(b.dialect, b.prefix, entries) {
		n, err := tx.Exec(ctx, s.SQL, s.Args...)
		if err := s.Check(n, err); err != nil {
			return err
		}
	}
	return nil
}

// Flush implements txn.Flusher.
func (b *buffer) Flush(context.Context) ([]txn.Statement, error) {
	b.mu.Lock()
	entries := b.entries
	b.entries, b.ids, b.bytes = nil, nil, 0
	b.mu.Unlock()
	return insertions(b.dialect, b.prefix, entries), nil
}

// published is the lanes of all that went through the buffer.
func (b *buffer) published() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.lanes
}

func lanesOf(entries []entry) (mask uint64) {
	for _, e := range entries {
		mask |= 1 << e.lane
	}
	return mask
}
