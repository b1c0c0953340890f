package forwarder

import (
	"context"
	"time"

	"github.com/millrace-go/millrace/internal/backoff"
)

// pipeline is what one destination has of its own in a session: its window of messages, its reads, its calls
// of the publisher. One that stands still leaves the others as they are.
type pipeline struct {
	s    *session
	cfg  Config // with what the route changes
	dest *destination

	readWork, wakeWork, publishWork signal

	// Guarded by session.mu:
	win     *window
	topics  []string // of this destination, that have something to read
	news    int      // how often topics gained one
	woken   uint64   // lanes of which a commit was signalled
	wokenAt int64    // number of the look-out's last question at that time
	paused  bool
}

func newPipeline(s *session, d *destination, f *fragile) *pipeline {
	p := &pipeline{s: s, cfg: d.cfg, dest: d, readWork: newSignal(), wakeWork: newSignal(), publishWork: newSignal()}
	p.win = newWindow(p, d.cfg, d.ordered, f)
	return p
}

// recover finds out whether a destination that did not answer is back, when there is nothing in hand to try
// it with: the replica handed its lanes over, or others have sent what there was. A publisher that can be
// asked is asked; of any other one it is assumed after some time.
func (p *pipeline) recover(ctx context.Context) error {
	for backoff.Sleep(ctx, min(outage.Max, p.cfg.Lease/2)) {
		p.s.mu.Lock()
		busy := len(p.win.known) > 0 || p.s.stopping
		p.s.mu.Unlock()
		if busy || !p.dest.doubted(time.Now(), downFor(p.cfg.Lease)) {
			continue
		}
		if err := p.dest.check(ctx, p.cfg.PublishTimeout); err != nil {
			continue
		}
		p.dest.assume()
		p.s.f.told.destination(ctx, p.dest.name, nil)
		p.s.log.InfoContext(ctx, "destination is tried again", "destination", p.dest.name)
		p.s.laneWork.set()
	}
	return nil
}
