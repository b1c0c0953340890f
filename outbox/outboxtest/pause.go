package outboxtest

import (
	"maps"

	"github.com/millrace-go/millrace/outbox"
)

var pauseRules = []rule{
	{"a paused topic is left out and comes back", func(s *suite) {
		s.Insert(Entry{ID: "1", Topic: "a"}, Entry{ID: "2", Topic: "b"})
		s.Pause(outbox.PausedTopic, "a")
		s.Pause(outbox.PausedTopic, "nothing waits")
		v := s.topics()
		wantAll(s, "ready", v.Ready, []string{"b"})
		want(s, "paused destinations", len(v.Paused), 0)
		s.Resume(outbox.PausedTopic, "a")
		wantAll(s, "ready", s.topics().Ready, []string{"a", "b"})
	}},
	{"paused destinations are listed, also when nothing waits", func(s *suite) {
		s.Pause(outbox.PausedDestination, "b")
		s.Pause(outbox.PausedDestination, "a")
		wantAll(s, "paused", s.topics().Paused, []string{"a", "b"})
		s.Insert(Entry{ID: "1", Topic: "a"})
		v := s.topics()
		wantAll(s, "a topic of the same name is not paused", v.Ready, []string{"a"})
		wantAll(s, "paused", v.Paused, []string{"a", "b"})
		s.Resume(outbox.PausedDestination, "b")
		wantAll(s, "paused", s.topics().Paused, []string{"a"})
	}},
	{"a survey counts the replicas that cannot reach a destination", func(s *suite) {
		for replica, down := range map[string][]string{"a": {"rabbit", "redis", "rabbit"}, "b": {"rabbit"}, "c": nil} {
			s.must(s.Store.Join(s.ctx, replica, long))
			want(s, "down of one that joined", len(s.survey().Down), 0)
			ok, err := s.Store.Renew(s.ctx, replica, 0, long, down)
			s.must(err)
			want(s, "renewed", ok, true)
			ok, err = s.Store.Renew(s.ctx, replica, 1, long, nil)
			s.must(err)
			want(s, "renewed", ok, true)
		}
		for replica, down := range map[string][]string{"a": {"rabbit", "redis", "rabbit"}, "b": {"rabbit"}, "c": nil} {
			ok, err := s.Store.Renew(s.ctx, replica, 2, long, down)
			s.must(err)
			want(s, "renewed", ok, true)
		}
		if v := s.survey(); v.Replicas != 3 || !maps.Equal(v.Down, map[string]int{"rabbit": 2, "redis": 1}) {
			s.Fatalf("survey: %+v", v)
		}
		s.Evict("b")
		want(s, "down after one is gone", s.survey().Down["rabbit"], 1)
	}},
}

func (s *suite) topics() outbox.Topics {
	s.Helper()
	v, err := s.Store.Topics(s.ctx)
	s.must(err)
	return v
}
