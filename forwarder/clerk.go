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
	item *item // of taskRefuse, taskPark, taskLift
	lane *lane // of taskHold, taskReload, taskCalm
}

type taskKind int8

const (
	taskRefuse taskKind = iota // count the attempt, stop the key
	taskPark                   // set the message aside as dead
	taskLift                   // a message that had stopped its key was delivered
	taskHold                   // make the rows behind a stop not ready
	taskReload                 // the store did not agree: ask it for the stops of the lane
	taskCalm                   // the lane's holder has proved that it lives
)

// holdRows bounds one call of Store.Hold.
const holdRows = 1000

// clerk records everything but the settling of confirmed rows: one task after the other, so that stop,
// hold and lift of a key reach the store in the order in which they happened. A task that fails is
// tried again; what it is about stays out of circulation meanwhile.
func (s *session) clerk(ctx context.Context) error {
	for {
		s.mu.Lock()
		var t task
		some := len(s.win.desk) > 0
		if some {
			t = s.win.desk[0]
			s.win.desk = s.win.desk[1:]
		}
		s.mu.Unlock()
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
			if !sleep(ctx, storeBackoff.Delay(tries)) {
				return nil
			}
		}
		if ctx.Err() != nil {
			return nil
		}
		s.moved()
	}
}

// storeBackoff is the pause between tries of a statement that failed.
var storeBackoff = backoff.Policy{Base: 50 * time.Millisecond, Max: time.Second}

func (s *session) record(ctx context.Context, t task) error {
	ctx, cancel := context.WithTimeout(ctx, s.storeTimeout())
	defer cancel()
	switch t.kind {
	case taskRefuse:
		return s.recordRefusal(ctx, t.item)
	case taskPark:
		return s.recordPark(ctx, t.item)
	case taskLift:
		return s.recordLift(ctx, t.item)
	case taskHold:
		return s.recordHold(ctx, t.lane)
	case taskReload:
		return s.reloadStops(ctx, t.lane)
	}
	if s.holds(t.lane) {
		return s.store.Calm(ctx, t.lane.grant)
	}
	return nil
}

func (s *session) recordRefusal(ctx context.Context, it *item) error {
	if !s.holds(it.lane) {
		return nil
	}
	f := s.refused(it)
	f.RetryIn = backoff.Policy{Base: s.cfg.RetryBase, Max: s.cfg.RetryMax}.Delay(it.attempt)
	f.Stop = s.cfg.OnFailure == StopKey && it.row.Key != ""
	ok, err := s.store.Refuse(ctx, it.lane.grant, f)
	if err != nil {
		return err
	}
	s.f.counts.refused.Add(1)
	s.log.WarnContext(ctx, "message refused", "id", f.ID, "position", f.Pos, "topic", it.row.Topic,
		"attempt", f.Attempt, "reason", f.Reason, "error", f.Error, "retry_in", f.RetryIn)
	s.mu.Lock()
	s.win.remove(it)
	if ok && f.Stop {
		s.win.stop(it.lane, it.row.Key, it.row.Pos)
	}
	s.mu.Unlock()
	s.promoteWork.set()
	return s.agreed(ctx, it.lane, ok)
}

func (s *session) recordPark(ctx context.Context, it *item) error {
	if !s.holds(it.lane) {
		return nil
	}
	f := s.refused(it)
	ok, err := s.store.Park(ctx, it.lane.grant, f)
	if err != nil {
		return err
	}
	s.f.counts.parked.Add(1)
	s.log.ErrorContext(ctx, "message parked", "id", f.ID, "position", f.Pos, "topic", it.row.Topic,
		"attempts", f.Attempt, "reason", f.Reason, "error", f.Error)
	s.mu.Lock()
	s.win.remove(it)
	if it.lane.stops[it.row.Key] == it.row.Pos {
		delete(it.lane.stops, it.row.Key)
	}
	s.mu.Unlock()
	return s.agreed(ctx, it.lane, ok)
}

func (s *session) recordLift(ctx context.Context, it *item) error {
	if !s.holds(it.lane) {
		return nil
	}
	ok, err := s.store.Lift(ctx, it.lane.grant, s.dest.name, it.row.Key)
	if err != nil {
		return err
	}
	s.mu.Lock()
	if s.win.known[it.row.Pos] == it {
		delete(it.lane.stops, it.row.Key)
		s.win.settleLater(it)
	}
	s.mu.Unlock()
	s.readWork.set()
	return s.agreed(ctx, it.lane, ok)
}

func (s *session) recordHold(ctx context.Context, l *lane) error {
	s.mu.Lock()
	items := l.holding
	s.mu.Unlock()
	if len(items) == 0 || !s.holds(l) {
		return nil
	}
	for part := range slices.Chunk(items, holdRows) {
		refs := make([]outbox.Ref, len(part))
		for i, it := range part {
			refs[i] = it.row.Ref
		}
		if _, err := s.store.Hold(ctx, l.grant, s.dest.name, refs); err != nil {
			return err
		}
	}
	s.mu.Lock()
	for _, it := range items {
		s.win.remove(it)
	}
	// More may have come while the store was busy.
	l.holding = l.holding[min(len(items), len(l.holding)):]
	if len(l.holding) > 0 {
		s.win.desk = append(s.win.desk, task{kind: taskHold, lane: l})
	}
	s.win.hungry = true
	s.mu.Unlock()
	// A stop that somebody removed in the store would make the same rows come back for ever.
	return s.reloadStops(ctx, l)
}

// agreed makes sure, when the store did not find things as they are remembered, that the stops are.
func (s *session) agreed(ctx context.Context, l *lane, ok bool) error {
	if ok {
		return nil
	}
	s.mu.Lock()
	s.win.hungry = true
	s.mu.Unlock()
	return s.reloadStops(ctx, l)
}

func (s *session) reloadStops(ctx context.Context, l *lane) error {
	stops, err := s.store.Stops(ctx, []int{l.grant.Lane})
	if err != nil {
		s.mu.Lock()
		s.win.desk = append(s.win.desk, task{kind: taskReload, lane: l})
		s.mu.Unlock()
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	l.stops = s.stopsOf(stops)[l.grant.Lane]
	if l.stops == nil {
		l.stops = map[string]int64{}
	}
	return nil
}

// stopsOf sorts the stops of this destination by lane.
func (s *session) stopsOf(stops []outbox.Stop) map[int]map[string]int64 {
	byLane := map[int]map[string]int64{}
	for _, stop := range stops {
		if stop.Destination != s.dest.name {
			continue
		}
		if byLane[stop.Lane] == nil {
			byLane[stop.Lane] = map[string]int64{}
		}
		byLane[stop.Lane][stop.Key] = stop.Pos
	}
	return byLane
}

func (s *session) refused(it *item) outbox.Refused {
	return outbox.Refused{
		Ref: it.row.Ref, Destination: s.dest.name, Key: it.row.Key,
		Attempt: it.attempt, Reason: it.reason, Error: it.text,
	}
}

// holds reports whether the lane is still ours.
func (s *session) holds(l *lane) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !l.lost
}
