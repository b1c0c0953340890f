package forwarder

import (
	"context"
	"slices"
	"time"

	"github.com/millrace-go/millrace/internal/backoff"
	"github.com/millrace-go/millrace/internal/fault"
	"github.com/millrace-go/millrace/outbox"
)

// settleRows bounds one call of Store.Settle.
const settleRows = 1000

// settle deletes confirmed rows, in batches over all lanes and destinations: while one statement is on its
// way, the next batch gathers. A row stays in the window, and so is not published again, until the store
// said that it is gone or that the lane is; if the store does not answer, the windows fill up and reading stops.
func (s *session) settle(ctx context.Context) error {
	for failures := 0; ; {
		items, grants, refs := s.toSettle()
		if len(items) == 0 {
			if !s.settleWork.wait(ctx, 0) {
				return nil
			}
			continue
		}
		fault.Point("forwarder.before_settle")
		call, cancel := context.WithTimeout(ctx, s.storeTimeout())
		settled, err := s.store.Settle(call, grants, refs)
		cancel()
		if err == nil {
			fault.Point("forwarder.after_settle")
		}
		gone := s.settled(ctx, items, settled, err)
		s.moved()

		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil || gone == 0:
			if failures++; err != nil && failures == 1 {
				s.log.WarnContext(ctx, "confirmed messages not settled, trying on", "error", err, "messages", len(items))
			}
			if !backoff.Sleep(ctx, storeBackoff.Delay(failures)) {
				return nil
			}
		default:
			failures = 0
		}
	}
}

// toSettle takes confirmed items out of the windows, the same share of each if there are too many.
func (s *session) toSettle() (items []*item, grants []outbox.Grant, refs []outbox.Ref) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, p := range s.pipes {
		items = append(items, p.win.toSettle((settleRows-len(items))/(len(s.pipes)-i))...)
	}
	grants, refs = named(items)
	return items, grants, refs
}

// named are items as the store knows them, and the grants of their lanes.
func named(items []*item) (grants []outbox.Grant, refs []outbox.Ref) {
	refs = make([]outbox.Ref, 0, len(items))
	granted := uint64(0)
	for _, it := range items {
		refs = append(refs, it.row.Ref)
		if granted&(1<<it.row.Lane) == 0 {
			granted |= 1 << it.row.Lane
			grants = append(grants, it.lane.grant)
		}
	}
	return grants, refs
}

// settled notes the store's answer and returns how many rows are gone.
func (s *session) settled(ctx context.Context, items []*item, settled outbox.Settled, err error) int {
	all, gone := len(settled.Done) == len(items), map[int64]bool{} // all, as a rule
	if !all {
		for _, pos := range slices.Concat(settled.Gone, settled.Done) {
			gone[pos] = true
		}
	}
	ended := 0
	done := make(map[*pipeline][]*item, 1)
	s.mu.Lock()
	lost := 0
	for _, number := range settled.Lost {
		if s.loseEpoch(ctx, number, items) {
			lost++
		}
	}
	for _, it := range items {
		if all || gone[it.row.Pos] {
			ended++
			it.lane.win.remove(it)
			p := it.lane.win.pipe
			done[p] = append(done[p], it)
		} else if !it.lane.lost {
			it.lane.win.settling = append(it.lane.win.settling, it)
		}
	}
	s.settleState(err)
	change := s.laneChange()
	s.mu.Unlock()
	if change.Lost = lost; lost > 0 {
		s.f.told.lanes(ctx, change)
	}
	for p, items := range done {
		p.dest.tally.settled(items)
		s.f.told.settled(ctx, p.batch(items))
	}
	return ended
}

// loseEpoch forgets a lane that the store says is not held with the epoch of these items, and reports
// whether it was believed to be. Called with the lock held.
func (s *session) loseEpoch(ctx context.Context, number int, items []*item) bool {
	for _, it := range items {
		if it.row.Lane == number && it.lane.win.lanes[number] == it.lane {
			s.log.WarnContext(ctx, "lane lost", "lane", number, "epoch", it.lane.grant.Epoch)
			s.lose(number)
			return true
		}
	}
	return false
}

// settleState remembers since when settling fails. Called with the lock held.
func (s *session) settleState(err error) {
	switch {
	case err == nil:
		s.settleFails = time.Time{}
	case s.settleFails.IsZero():
		s.settleFails = time.Now()
	}
}

// overdue reports whether settling has failed for so long that nothing more is to be read. Called with
// the lock held.
func (s *session) overdue(now time.Time) bool {
	return !s.settleFails.IsZero() && now.Sub(s.settleFails) > 3*s.cfg.Lease
}
