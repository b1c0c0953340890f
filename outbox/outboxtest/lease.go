package outboxtest

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/millrace-go/millrace/outbox"
)

var leaseRules = []rule{
	{"a replica that joined lives and holds nothing", func(s *suite) {
		s.must(s.Store.Join(s.ctx, "a", long))
		v, err := s.Store.Survey(s.ctx)
		s.must(err)
		wantSurvey(s, v, outbox.Survey{Replicas: 1, FreeLanes: outbox.Lanes})
	}},
	{"a replica cannot join twice under one name", func(s *suite) {
		s.must(s.Store.Join(s.ctx, "a", long))
		if s.Store.Join(s.ctx, "a", long) == nil {
			s.Fatal("the second join succeeded")
		}
	}},
	{"a renewal is a compare-and-set of the beat", func(s *suite) {
		s.must(s.Store.Join(s.ctx, "a", long))
		for _, step := range []struct {
			beat int64
			ok   bool
		}{{1, false}, {0, true}, {0, false}, {1, true}, {2, true}} {
			ok, err := s.Store.Renew(s.ctx, "a", step.beat, long, nil)
			s.must(err)
			want(s, "renewed", ok, step.ok)
		}
		ok, err := s.Store.Renew(s.ctx, "nobody", 0, long, nil)
		s.must(err)
		want(s, "renewed without having joined", ok, false)
	}},
	{"a renewal after the lease has ended revives it while nobody swept", func(s *suite) {
		s.must(s.Store.Join(s.ctx, "a", time.Millisecond))
		s.soon("the lease ends", func() bool { return s.survey().Replicas == 0 })
		ok, err := s.Store.Renew(s.ctx, "a", 0, long, nil)
		s.must(err)
		want(s, "renewed", ok, true)
		want(s, "replicas", s.survey().Replicas, 1)
	}},
	{"a sweep removes the others whose lease has ended and nobody else", func(s *suite) {
		s.must(s.Store.Join(s.ctx, "dead", time.Millisecond))
		s.must(s.Store.Join(s.ctx, "sweeper", time.Millisecond))
		s.must(s.Store.Join(s.ctx, "alive", long))
		s.soon("two leases end", func() bool { return s.survey().Replicas == 1 })
		n, err := s.Store.Sweep(s.ctx, "sweeper")
		s.must(err)
		want(s, "swept", n, 1)
		for replica, there := range map[string]bool{"dead": false, "sweeper": true, "alive": true} {
			ok, err := s.Store.Renew(s.ctx, replica, 0, long, nil)
			s.must(err)
			want(s, replica, ok, there)
		}
	}},
	{"only a registered replica claims", func(s *suite) {
		want(s, "lanes", len(s.claim("stranger", 10)), 0)
	}},
	{"a claim takes at most what was asked for and raises each epoch", func(s *suite) {
		s.must(s.Store.Join(s.ctx, "a", long))
		first := s.claim("a", 10)
		want(s, "lanes", len(first), 10)
		want(s, "free lanes", s.survey().FreeLanes, outbox.Lanes-10)
		for _, g := range first {
			want(s, "crashes of a lane that nobody had", g.Crashes, 0)
		}
		s.must(s.Store.Release(s.ctx, list(first)))
		for lane, g := range s.claim("a", outbox.Lanes) {
			if before, had := first[lane]; had {
				want(s, "epoch", g.Epoch, before.Epoch+1)
			}
		}
	}},
	{"a lane that is held is not claimed again", func(s *suite) {
		want(s, "lanes", len(s.holder("a")), outbox.Lanes)
		want(s, "lanes of the second claim", len(s.claim("a", outbox.Lanes)), 0)
		want(s, "lanes of another replica", len(s.holder("b")), 0)
	}},
	{"a lease that has ended is not free before it is swept", func(s *suite) {
		s.must(s.Store.Join(s.ctx, "a", time.Millisecond))
		s.claim("a", outbox.Lanes)
		s.soon("the lease ends", func() bool { return s.survey().Replicas == 0 })
		want(s, "free lanes", s.survey().FreeLanes, 0)
	}},
	{"a vanished holder counts as a crash until the lane is calm", func(s *suite) {
		old, current := s.overtaken()
		want(s, "lanes", len(current), outbox.Lanes)
		for lane, g := range current {
			want(s, "epoch", g.Epoch, old[lane].Epoch+1)
			want(s, "crashes", g.Crashes, 1)
		}
		s.Evict("second")
		third := s.holder("third")
		want(s, "crashes", third[0].Crashes, 2)
		s.must(s.Store.Calm(s.ctx, third[0]))
		s.must(s.Store.Calm(s.ctx, current[1])) // an old epoch calms nothing
		s.Evict("third")
		fourth := s.holder("fourth")
		want(s, "crashes after the calm", fourth[0].Crashes, 1)
		want(s, "crashes without", fourth[1].Crashes, 3)
	}},
	{"a released lane is free at once and no crash", func(s *suite) {
		held := s.holder("a")
		s.must(s.Store.Release(s.ctx, []outbox.Grant{held[3], held[4]}))
		s.must(s.Store.Join(s.ctx, "b", long))
		got := s.claim("b", outbox.Lanes)
		want(s, "lanes", len(got), 2)
		want(s, "crashes", got[3].Crashes+got[4].Crashes, 0)
	}},
	{"a release with an old epoch frees nothing", func(s *suite) {
		old, _ := s.overtaken()
		s.must(s.Store.Release(s.ctx, list(old)))
		want(s, "free lanes", s.survey().FreeLanes, 0)
	}},
	{"who leaves releases all lanes and is gone", func(s *suite) {
		s.holder("a")
		s.must(s.Store.Leave(s.ctx, "a"))
		wantSurvey(s, s.survey(), outbox.Survey{FreeLanes: outbox.Lanes})
		for _, g := range s.holder("b") {
			want(s, "crashes", g.Crashes, 0)
		}
		s.must(s.Store.Leave(s.ctx, "a")) // nothing to do
	}},
	{"who leaves while its lanes are still being released gets no error", func(s *suite) {
		for i := range 20 { // a release that was given up goes on in the database
			replica := fmt.Sprint("leaver", i)
			grants := list(s.holder(replica))
			rand.Shuffle(len(grants), func(i, j int) { grants[i], grants[j] = grants[j], grants[i] })
			var group sync.WaitGroup
			group.Go(func() {
				if err := s.Store.Release(s.ctx, grants); err != nil {
					s.Error(err)
				}
			})
			group.Go(func() {
				if err := s.Store.Leave(s.ctx, replica); err != nil {
					s.Error(err)
				}
			})
			group.Wait()
			wantSurvey(s, s.survey(), outbox.Survey{FreeLanes: outbox.Lanes})
		}
	}},
	{"replicas that claim at once share no lane", func(s *suite) {
		var (
			mu     sync.Mutex
			claims = map[int]int{}
			group  sync.WaitGroup
		)
		for _, replica := range []string{"a", "b", "c", "d"} {
			s.must(s.Store.Join(s.ctx, replica, long))
			group.Go(func() {
				for range 20 {
					grants, err := s.Store.Claim(s.ctx, replica, 3)
					if err != nil {
						s.Error(err)
						return
					}
					mu.Lock()
					for _, g := range grants {
						claims[g.Lane]++
					}
					mu.Unlock()
				}
			})
		}
		group.Wait()
		for lane, n := range claims {
			if n > 1 {
				s.Errorf("lane %d was claimed %d times", lane, n)
			}
		}
		want(s, "lanes claimed", len(claims), outbox.Lanes)
	}},
	{"a replica that has just joined keeps what it claims from those that join beside it", func(s *suite) {
		for round := range 25 {
			var mu sync.Mutex
			var group sync.WaitGroup
			owners := map[int]string{}
			for n := range 4 {
				replica := fmt.Sprintf("%d in round %d", n, round)
				group.Go(func() {
					if err := s.Store.Join(s.ctx, replica, long); err != nil {
						s.Error(err)
						return
					}
					grants, err := s.Store.Claim(s.ctx, replica, 16)
					if err != nil {
						s.Error(err)
					}
					mu.Lock()
					defer mu.Unlock()
					for _, g := range grants {
						if other := owners[g.Lane]; other != "" {
							s.Errorf("lane %d was claimed by %s and by %s", g.Lane, other, replica)
						}
						owners[g.Lane] = replica
					}
				})
			}
			group.Wait()
			for n := range 4 {
				s.must(s.Store.Leave(s.ctx, fmt.Sprintf("%d in round %d", n, round)))
			}
		}
	}},
}

func (s *suite) survey() outbox.Survey {
	s.Helper()
	v, err := s.Store.Survey(s.ctx)
	s.must(err)
	return v
}
