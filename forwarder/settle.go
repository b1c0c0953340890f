package forwarder

import (
	"context"
	"time"

	"github.com/millrace-go/millrace/internal/fault"
)

// settleRows bounds one call of Store.Settle.
const settleRows = 1000

// settle deletes confirmed rows, in batches over all lanes: while one statement is on its way, the next
// batch gathers. A row stays in the window, and so is not published again, until the store said that it
// is gone or that the lane is; if the store does not answer, the window fills up and reading stops.
func (s *session) settle(ctx context.Context) error {
	for failures := 0; ; {
		s.mu.Lock()
		items, grants, refs := s.win.toSettle(settleRows)
		s.mu.Unlock()
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

		s.mu.Lock()
		for _, number := range settled.Lost {
			s.loseEpoch(number, items)
		}
		done := append(settled.Done, settled.Gone...)
		gone := make(map[int64]bool, len(done))
		for _, pos := range done {
			gone[pos] = true
		}
		for _, it := range items {
			if gone[it.row.Pos] {
				s.win.remove(it)
			} else if !it.lane.lost {
				s.win.settling = append(s.win.settling, it)
			}
		}
		s.settleState(err)
		s.mu.Unlock()
		s.f.counts.settled.Add(int64(len(settled.Done)))
		s.moved()

		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil || len(gone) == 0:
			if failures++; err != nil && failures == 1 {
				s.log.WarnContext(ctx, "confirmed messages not settled, trying on", "error", err, "messages", len(items))
			}
			if !sleep(ctx, storeBackoff.Delay(failures)) {
				return nil
			}
		default:
			failures = 0
		}
	}
}

// loseEpoch forgets a lane that the store says is not held with the epoch of these items. Called with
// the lock held.
func (s *session) loseEpoch(number int, items []*item) {
	for _, it := range items {
		if it.row.Lane == number && s.win.lanes[number] == it.lane {
			s.log.Warn("lane lost", "lane", number, "epoch", it.lane.grant.Epoch)
			s.win.lose(number)
			return
		}
	}
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
