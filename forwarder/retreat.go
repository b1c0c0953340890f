package forwarder

import (
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/millrace-go/millrace/outbox"
)

// away stands, in the list of destinations that a replica cannot reach, for having left its lanes to the
// others: they divide them among themselves.
const away = "*"

// downFor is how long a destination may be out of reach before a replica leaves its lanes to one that
// reaches it: 30 s with the default lease.
func downFor(lease time.Duration) time.Duration { return lease * 15 / 4 }

// retreat is whether this replica leaves the lanes to the others, because it cannot reach a destination that
// another one can: what is kept by one that is alive and useless would stand for ever.
type retreat struct {
	mu    sync.Mutex
	gone  bool
	told  []string  // what the last renewal said
	until time.Time // it stays till then: the last time, nobody was left to do the work
}

// share is how many lanes this replica may hold now.
func (s *session) share(survey outbox.Survey, now time.Time) int {
	r := &s.retreat
	r.mu.Lock()
	defer r.mu.Unlock()
	before := r.gone
	othersAway := survey.Down[away]
	if slices.Contains(r.told, away) {
		othersAway--
	}
	working := survey.Replicas - 1 - max(othersAway, 0) // of the others
	r.gone = working > 0 && (before || now.After(r.until)) && s.useless(survey, r.told, now)
	if before && working <= 0 {
		// Two that wait for each other must not come back and leave together for ever.
		stay := downFor(s.cfg.Lease)
		r.until = now.Add(stay + rand.N(stay))
	}
	if r.gone != before {
		s.log.Warn("a destination is not reached from here: lanes left to others", "left", r.gone)
	}
	if r.gone {
		return 0
	}
	return fairShare(working + 1)
}

// useless reports whether there is a destination that this replica has not reached for long, and another
// one does.
func (s *session) useless(survey outbox.Survey, told []string, now time.Time) bool {
	for _, p := range s.pipes {
		c := p.dest.state()
		others := survey.Down[p.dest.name]
		if slices.Contains(told, p.dest.name) {
			others--
		}
		if others >= survey.Replicas-1 {
			continue // nobody does
		}
		if !c.stuck.IsZero() && now.Sub(c.stuck) > 2*s.cfg.PublishTimeout {
			return true
		}
		if !c.since.IsZero() && now.Sub(c.since) > downFor(s.cfg.Lease) {
			return true
		}
	}
	return false
}

// unreached lists what the other replicas are to know: the destinations that this one cannot reach, and
// whether it has left the lanes to them.
func (s *session) unreached() (names []string) {
	for _, p := range s.pipes {
		if c := p.dest.state(); c.err != nil {
			names = append(names, p.dest.name)
		}
	}
	s.retreat.mu.Lock()
	defer s.retreat.mu.Unlock()
	if s.retreat.gone {
		names = append(names, away)
	}
	return names
}

// reported notes what the others have been told.
func (s *session) reported(names []string) {
	s.retreat.mu.Lock()
	defer s.retreat.mu.Unlock()
	s.retreat.told = names
}
