package redisstreams

import (
	"context"
	"time"

	"github.com/millrace-go/millrace/internal/backoff"
)

// sweepInterval is how often the group is searched for members that are gone.
const sweepInterval = 5 * time.Minute

// keepLoop says every third of MaxIdle that the entries in the window are being worked at, so that no
// other member takes them over, and keeps in mind up to where the group is through.
func (s *subscription) keepLoop() {
	tick := time.NewTicker(s.cfg.MaxIdle / 3)
	defer tick.Stop()
	sweep := time.NewTicker(min(sweepInterval, s.cfg.ConsumerTimeout/2+time.Millisecond))
	defer sweep.Stop()
	for {
		select {
		case <-tick.C:
			s.keep()
			s.observe(s.io)
		case <-sweep.C:
			// Failures of these are not reported: the reader meets the same server.
			if n, err := s.group.sweep(s.io, s.cfg.ConsumerTimeout); err == nil && n > 0 {
				s.log.InfoContext(s.io, "redisstreams: removed members that were silent", "members", n)
			}
		case <-s.io.Done():
			return
		}
	}
}

func (s *subscription) keep() {
	answer := make(chan []string, 1)
	select {
	case s.ask <- answer:
	case <-s.io.Done():
		return
	}
	others, err := s.group.hold(s.io, <-answer, 0)
	if err != nil {
		s.log.DebugContext(s.io, "redisstreams: heartbeat", "error", err)
		return
	}
	if len(others) == 0 {
		return
	}
	select {
	case s.lost <- others:
	case <-s.io.Done():
	}
}

// observe notes an id up to which everything is acknowledged: from there a lost group is made again.
func (s *subscription) observe(ctx context.Context) {
	floor, err := s.group.floor(ctx)
	if err != nil {
		return
	}
	s.mu.Lock()
	s.floor = floor
	s.mu.Unlock()
}

// ackLoop tells Redis what was acknowledged, all that has gathered in one command, until it knows.
func (s *subscription) ackLoop() {
	for {
		var ids []string
		select {
		case ids = <-s.acks:
		case <-s.io.Done():
			return
		}
		for failures := 1; ; failures++ {
			err := s.client.XAck(s.io, s.group.topic, s.group.name, ids...).Err()
			if err == nil {
				break
			}
			if s.io.Err() != nil {
				return
			}
			s.log.DebugContext(s.io, "redisstreams: acknowledge", "error", err)
			backoff.Sleep(s.io, between.Delay(failures))
		}
		select {
		case s.acked <- ids:
		case <-s.io.Done():
			return
		}
	}
}
