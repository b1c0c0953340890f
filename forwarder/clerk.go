package forwarder

import (
	"context"
	"slices"
	"time"

	"github.com/millrace-go/millrace/internal/backoff"
	"github.com/millrace-go/millrace/outbox"
)

// task is something that the clerk has to put down in the store.
type task struct {
	kind taskKind
	item *item // of taskRefuse, taskDefer, taskPark, taskLift
	lane *lane // of taskHold, taskReload, taskCalm
}

type taskKind int8

const (
	taskRefuse taskKind = iota // count the attempt, stop the key
	taskDefer                  // the same, but the attempt does not count
	taskPark                   // set the message aside as dead
	taskLift                   // a message that had stopped its key was delivered
	taskHold                   // make the rows behind a stop not ready
	taskReload                 // the store did not agree: ask it for the stops of the lane
	taskCalm                   // the lane's holder has proved that it lives
)

// holdRows bounds one call of Store.Hold.
const holdRows = 1000

// clerk records everything but the settling of confirmed rows: one task after the other, so that stop,
// hold and lift of a key reach the store in the order in which they happened; the destinations take turns. A
// task that fails is tried again; what it is about stays out of circulation meanwhile.
func (s *session) clerk(ctx context.Context) error {
	for turn := 0; ; turn++ {
		t, some := s.nextTask(turn)
		if !some {
			if !s.clerkWork.wait(ctx, 0) {
				return nil
			}
			continue
		}
		for tries := 1; ; tries++ {
			err := s.record(ctx, t)
			if err == nil || ctx.Err() != nil {
				break
			}
			if tries == 1 {
				s.log.WarnContext(ctx, "outbox not written, trying on", "error", err)
			}
			if !backoff.Sleep(ctx, storeBackoff.Delay(tries)) {
				return nil
			}
		}
		if ctx.Err() != nil {
			return nil
		}
		s.moved()
	}
}

// nextTask takes a task of the first destination that has one, counted from turn.
func (s *session) nextTask(turn int) (t task, some bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.pipes {
		w := s.pipes[(turn+i)%len(s.pipes)].win
		if len(w.desk) > 0 {
			t, w.desk = w.desk[0], w.desk[1:]
			return t, true
		}
	}
	return task{}, false
}

// storeBackoff is the pause between tries of a statement that failed.
var storeBackoff = backoff.Policy{Base: 50 * time.Millisecond, Max: time.Second}

func (s *session) record(ctx context.Context, t task) error {
	ctx, cancel := context.WithTimeout(ctx, s.storeTimeout())
	defer cancel()
	l := t.lane
	if l == nil {
		l = t.item.lane
	}
	if !s.holds(l) {
		return nil
	}
	p := l.win.pipe
	switch t.kind {
	case taskRefuse, taskDefer:
		return p.recordRefusal(ctx, t.item, t.kind == taskRefuse)
	case taskPark:
		return p.recordPark(ctx, t.item)
	case taskLift:
		return p.recordLift(ctx, t.item)
	case taskHold:
		return p.recordHold(ctx, l)
	case taskReload:
		return p.reloadStops(ctx, l)
	}
	return s.recordCalm(ctx, l)
}

// recordCalm resets the crash count of a lane when every destination is through its first read there.
func (s *session) recordCalm(ctx context.Context, l *lane) error {
	s.mu.Lock()
	calm := true
	for _, p := range s.pipes {
		other := p.win.lanes[l.grant.Lane]
		calm = calm && other != nil && other.calm
	}
	s.mu.Unlock()
	if !calm {
		return nil // the last one does it
	}
	return s.store.Calm(ctx, l.grant)
}

// recordRefusal puts a refused message back until its next attempt. One whose refusal does not count, because
// everything is refused, waits the longer the longer that goes on.
func (p *pipeline) recordRefusal(ctx context.Context, it *item, counts bool) error {
	s, f := p.s, p.refused(it)
	f.RetryIn = backoff.Policy{Base: p.cfg.RetryBase, Max: p.cfg.RetryMax}.Delay(it.attempt)
	if !counts {
		f.Attempt = it.counted
		lasted := min(p.cfg.RetryMax, max(p.cfg.RetryBase, p.dest.suspectedFor(time.Now())))
		f.RetryIn = backoff.Policy{Base: lasted, Max: lasted}.Delay(1)
	}
	f.Stop = p.cfg.OnFailure == StopKey && it.row.Key != ""
	ok, err := s.store.Refuse(ctx, it.lane.grant, f)
	if err != nil {
		return err
	}
	if counts {
		p.dest.tally.refused(it)
		s.log.WarnContext(ctx, "message refused", "id", f.ID, "position", f.Pos, "topic", it.row.Topic,
			"destination", p.dest.name, "attempt", f.Attempt, "reason", f.Reason, "error", f.Error, "retry_in", f.RetryIn)
	}
	s.mu.Lock()
	p.win.remove(it)
	if ok && f.Stop {
		p.win.stop(it.lane, it.row.Key, it.row.Pos)
	}
	s.mu.Unlock()
	s.promoteWork.set()
	s.f.told.refused(ctx, p.message(it), Failure{Reason: f.Reason, Error: f.Error, Counted: counts, RetryIn: f.RetryIn})
	return p.agreed(ctx, it.lane, ok)
}

func (p *pipeline) recordPark(ctx context.Context, it *item) error {
	s, f := p.s, p.refused(it)
	ok, err := s.store.Park(ctx, it.lane.grant, f)
	if err != nil {
		return err
	}
	p.dest.tally.parked(it)
	s.log.ErrorContext(ctx, "message parked", "id", f.ID, "position", f.Pos, "topic", it.row.Topic,
		"destination", p.dest.name, "attempts", f.Attempt, "reason", f.Reason, "error", f.Error)
	s.mu.Lock()
	p.win.remove(it)
	if it.lane.stops[it.row.Key] == it.row.Pos {
		delete(it.lane.stops, it.row.Key)
	}
	s.mu.Unlock()
	s.f.told.parked(ctx, p.message(it), Failure{Reason: f.Reason, Error: f.Error, Counted: true})
	return p.agreed(ctx, it.lane, ok)
}

func (p *pipeline) recordLift(ctx context.Context, it *item) error {
	s := p.s
	ok, err := s.store.Lift(ctx, it.lane.grant, p.dest.name, it.row.Key)
	if err != nil {
		return err
	}
	s.mu.Lock()
	if p.win.known[it.row.Pos] == it {
		delete(it.lane.stops, it.row.Key)
		p.win.settleLater(it)
	}
	s.mu.Unlock()
	p.readWork.set()
	return p.agreed(ctx, it.lane, ok)
}

func (p *pipeline) recordHold(ctx context.Context, l *lane) error {
	s := p.s
	s.mu.Lock()
	items := l.holding
	s.mu.Unlock()
	if len(items) == 0 {
		return nil
	}
	for part := range slices.Chunk(items, holdRows) {
		refs := make([]outbox.Ref, len(part))
		for i, it := range part {
			refs[i] = it.row.Ref
		}
		if _, err := s.store.Hold(ctx, l.grant, p.dest.name, refs); err != nil {
			return err
		}
	}
	s.mu.Lock()
	for _, it := range items {
		p.win.remove(it)
	}
	// More may have come while the store was busy.
	l.holding = l.holding[min(len(items), len(l.holding)):]
	if len(l.holding) > 0 {
		p.win.desk = append(p.win.desk, task{kind: taskHold, lane: l})
	}
	p.win.hungry = true
	s.mu.Unlock()
	// A stop that somebody removed in the store would make the same rows come back for ever.
	return p.agreed(ctx, l, false)
}

// agreed makes sure, when the store did not find things as they are remembered, that the stops are.
func (p *pipeline) agreed(ctx context.Context, l *lane, ok bool) error {
	s := p.s
	if ok {
		return nil
	}
	s.mu.Lock()
	p.win.hungry = true
	s.mu.Unlock()
	if err := p.reloadStops(ctx, l); err != nil { // a task of its own, so that what is done is not done again
		s.mu.Lock()
		p.win.desk = append(p.win.desk, task{kind: taskReload, lane: l})
		s.mu.Unlock()
	}
	return nil
}

func (p *pipeline) reloadStops(ctx context.Context, l *lane) error {
	s := p.s
	stops, err := s.store.Stops(ctx, []int{l.grant.Lane})
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	l.stops = p.stopsOf(stops)[l.grant.Lane]
	if l.stops == nil {
		l.stops = map[string]int64{}
	}
	return nil
}

// stopsOf sorts the stops of this destination by lane.
func (p *pipeline) stopsOf(stops []outbox.Stop) map[int]map[string]int64 {
	byLane := map[int]map[string]int64{}
	for _, stop := range stops {
		if stop.Destination != p.dest.name {
			continue
		}
		if byLane[stop.Lane] == nil {
			byLane[stop.Lane] = map[string]int64{}
		}
		byLane[stop.Lane][stop.Key] = stop.Pos
	}
	return byLane
}

func (p *pipeline) refused(it *item) outbox.Refused {
	return outbox.Refused{
		Ref: it.row.Ref, Destination: p.dest.name, Key: it.row.Key,
		Attempt: it.attempt, Reason: it.reason, Error: it.text,
	}
}

// holds reports whether the lane is still ours.
func (s *session) holds(l *lane) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !l.lost
}
