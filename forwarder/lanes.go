package forwarder

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/millrace-go/millrace/internal/dberr"
	"github.com/millrace-go/millrace/outbox"
)

// maxSearch is the longest time between two looks at who holds what.
const maxSearch = time.Second

// keepLanes keeps a fair share of the lanes: it takes over what is free and hands over what is too much.
func (s *session) keepLanes(ctx context.Context) error {
	next := time.Now()
	search, searches := min(maxSearch, s.cfg.Lease/4), 0
	for failing := false; ; {
		if !time.Now().Before(next) {
			err := s.balance(ctx, searches)
			searches++
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, errClaim) {
				return err
			}
			if err != nil && !failing {
				s.log.WarnContext(ctx, "lanes not surveyed, trying on", "error", err)
			}
			failing = err != nil
			next = time.Now().Add(search)
		}
		if err := s.handOver(ctx); err != nil && ctx.Err() == nil {
			s.log.WarnContext(ctx, "lanes not released, trying on", "error", err)
		}
		if !s.laneWork.wait(ctx, max(time.Until(next), time.Millisecond)) {
			return nil
		}
	}
}

// tidySearches is the number of searches after which the registrations of the dead are swept even if
// nothing of theirs is wanted.
const tidySearches = 32

// balance surveys, and claims or marks lanes to be handed over. Replicas whose lease has ended are swept
// when their lanes are wanted: a quiet replica that has its share only reads.
func (s *session) balance(ctx context.Context, search int) error {
	ctx, cancel := context.WithTimeout(ctx, s.storeTimeout())
	defer cancel()
	survey, err := s.store.Survey(ctx)
	if err != nil {
		return err
	}
	held, stopping := s.heldLanes()
	if stopping || !s.lease.valid(time.Now()) {
		return nil
	}
	share := s.share(survey, time.Now())
	if held+survey.FreeLanes < share || search%tidySearches == 0 {
		swept, err := s.store.Sweep(ctx, s.replica)
		if err != nil {
			return err
		}
		if swept > 0 {
			survey.FreeLanes = outbox.Lanes // the claim takes what there is
		}
	}
	if n := min(share-held, survey.FreeLanes); n > 0 {
		return s.claim(ctx, n)
	}
	if held > share {
		s.giveUp(held - share)
	}
	return nil
}

// fairShare is how many lanes each of n replicas may hold.
func fairShare(n int) int {
	n = max(n, 1)
	return (outbox.Lanes + n - 1) / n
}

// held are the lanes that this replica holds, as its first destination sees them: all see the same ones.
// Called with the lock held.
func (s *session) held() map[int]*lane { return s.pipes[0].win.lanes }

// lose forgets a lane. Called with the lock held.
func (s *session) lose(number int) {
	for _, p := range s.pipes {
		p.win.lose(number)
	}
}

// leave marks a lane to be handed over. Called with the lock held.
func (s *session) leave(number int) {
	for _, p := range s.pipes {
		p.win.leave(p.win.lanes[number])
	}
}

// idle reports whether a lane has nothing that a broker may have and the store does not know of. Called with
// the lock held.
func (s *session) idle(number int) bool {
	for _, p := range s.pipes {
		if p.win.lanes[number].pending > 0 {
			return false
		}
	}
	return true
}

// laneChange describes what is held now. Called with the lock held.
func (s *session) laneChange() LaneChange {
	return LaneChange{Replica: s.replica, Held: len(s.held())}
}

func (s *session) heldLanes() (held int, stopping bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.held() {
		if !l.leaving {
			held++
		}
	}
	return held, s.stopping
}

// answered reports whether an error came from the database itself, which then has done nothing.
func answered(err error) bool {
	return dberr.SQLState(err) != "" || dberr.MySQL(err) != 0 || dberr.SQLite(err) != 0
}

// errClaim ends a session whose claim has no answer: lanes may be registered for it that it does not
// know of, and nobody would work them.
var errClaim = errors.New("forwarder: it is not known which lanes were claimed")

// claim takes lanes, and loads their stops before anything of them is read. If the stops cannot be
// loaded, the lanes go back.
func (s *session) claim(ctx context.Context, n int) error {
	grants, err := s.store.Claim(ctx, s.replica, n)
	if err != nil && !answered(err) {
		return fmt.Errorf("%w: %w", errClaim, err)
	}
	if err != nil {
		return err
	}
	if len(grants) == 0 {
		return nil
	}
	lanes := make([]int, len(grants))
	for i, g := range grants {
		lanes[i] = g.Lane
	}
	stops, err := s.store.Stops(ctx, lanes)
	if err != nil {
		if lost := s.store.Release(ctx, grants); lost != nil {
			return fmt.Errorf("%w: %w", errClaim, lost)
		}
		return err
	}
	careful := 0
	s.mu.Lock()
	for _, g := range grants {
		s.lose(g.Lane) // of an epoch that is gone
		if g.Crashes >= 2 {
			careful++
		}
	}
	for _, p := range s.pipes {
		byLane := p.stopsOf(stops)
		for _, g := range grants {
			if byLane[g.Lane] == nil {
				byLane[g.Lane] = map[string]int64{}
			}
			p.win.hold(g, byLane[g.Lane])
		}
	}
	change := s.laneChange()
	s.mu.Unlock()
	s.log.InfoContext(ctx, "lanes taken", "lanes", len(grants), "careful", careful)
	change.Taken = len(grants)
	s.f.told.lanes(ctx, change)
	s.promoteWork.set()
	s.look.now.set()
	return nil
}

// giveUp marks the n highest lanes to be handed over.
func (s *session) giveUp(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var numbers []int
	for number, l := range s.held() {
		if !l.leaving {
			numbers = append(numbers, number)
		}
	}
	slices.Sort(numbers)
	for _, number := range numbers[len(numbers)-min(n, len(numbers)):] {
		s.leave(number)
	}
}

// handOver releases the lanes to be handed over of which nothing is unresolved any more: a copy that
// is still on its way would arrive behind what the next holder sends.
func (s *session) handOver(ctx context.Context) error {
	s.mu.Lock()
	var grants []outbox.Grant
	for number, l := range s.held() {
		if l.leaving && s.idle(number) {
			grants = append(grants, l.grant)
		}
	}
	s.mu.Unlock()
	if len(grants) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, s.storeTimeout())
	defer cancel()
	if err := s.store.Release(ctx, grants); err != nil {
		return err
	}
	s.mu.Lock()
	for _, g := range grants {
		s.lose(g.Lane)
	}
	change := s.laneChange()
	s.mu.Unlock()
	s.log.InfoContext(ctx, "lanes handed over", "lanes", len(grants))
	change.HandedOver = len(grants)
	s.f.told.lanes(ctx, change)
	return nil
}
