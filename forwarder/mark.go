package forwarder

import (
	"context"

	"github.com/millrace-go/millrace/internal/backoff"
)

// mark says in the store that messages which can be cancelled are about to be published, and returns the
// batch without those that somebody cancelled, or may be cancelling at this moment. Without an answer
// nothing of the batch is published.
func (p *pipeline) mark(ctx context.Context, batch []*item) []*item {
	var open []*item
	for _, it := range batch {
		if it.row.Cancellable && !it.marked {
			open = append(open, it)
		}
	}
	if len(open) == 0 {
		return batch
	}
	grants, refs := named(open)
	s := p.s
	call, cancel := context.WithTimeout(ctx, s.storeTimeout())
	defer cancel()
	positions, err := s.store.Mark(call, grants, refs)
	if err != nil {
		s.putBack(batch)
		if ctx.Err() == nil {
			s.log.WarnContext(ctx, "messages not marked, trying on", "error", err)
			backoff.Sleep(ctx, storeBackoff.Base)
		}
		return nil
	}
	marked := make(map[int64]bool, len(positions))
	for _, pos := range positions {
		marked[pos] = true
	}
	var kept, dropped []*item
	s.mu.Lock()
	for _, it := range batch {
		switch {
		case !it.row.Cancellable || it.marked:
			kept = append(kept, it)
		case marked[it.row.Pos]:
			it.marked = true
			kept = append(kept, it)
		default:
			p.win.skip(it)
			dropped = append(dropped, it)
		}
	}
	s.mu.Unlock()
	s.f.told.dropped(ctx, p.batch(dropped), DropCancelled)
	return kept
}
