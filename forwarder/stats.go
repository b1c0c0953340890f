package forwarder

import (
	"cmp"
	"math"
	"slices"
	"sync"
	"time"
)

// Stats is what a forwarder has done since it was made, and what it has in hand. What waits in the outbox
// and is not in hand, the outbox itself can count.
type Stats struct {
	Running bool
	Lanes   int // held
	Read    int // rows in memory: waiting to be published, in flight, or to be settled
	Flying  int // of these, with a publisher
	Pending int // of these, with a publisher, or answered and not yet stored
	Counters

	// Destinations in the order of Config.Routes, and at the end that of the publisher given to New.
	Destinations []DestinationStats
}

// Counters count messages.
type Counters struct {
	Published int64 // that the broker confirmed
	Settled   int64 // whose rows are gone from the outbox
	Refused   int64 // attempts that the broker refused and that will be repeated
	Deferred  int64 // attempts refused that do not count, because everything was
	Parked    int64
	// Rate is how many were published per second, over about the last ten seconds.
	Rate float64
}

// DestinationStats is about one destination.
type DestinationStats struct {
	Name   string
	Paused bool
	// Err is why it does not answer, nil if it does; Since is when it ceased to.
	Err                   error
	Since                 time.Time
	Read, Flying, Pending int
	Counters
	// Topics by name. Beyond 1,000 topics the rest is counted under "".
	Topics []TopicStats
}

// TopicStats is about one topic.
type TopicStats struct {
	Topic string
	Counters
}

// Stats returns a snapshot. It may be called at any time.
func (f *Forwarder) Stats() Stats {
	st := Stats{Running: f.running.Load()}
	now := time.Now()
	for _, d := range f.dests {
		c := d.state()
		ds := DestinationStats{Name: d.name, Err: c.err, Since: c.since}
		ds.Counters, ds.Topics = d.tally.read(now)
		st.Counters.add(ds.Counters)
		st.Destinations = append(st.Destinations, ds)
	}
	s := f.current.Load()
	if s == nil {
		return st
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	st.Lanes = len(s.held())
	for i, p := range s.pipes {
		ds := &st.Destinations[i]
		ds.Paused, ds.Read, ds.Flying, ds.Pending = p.paused, len(p.win.known), p.win.flying, p.win.unresolved()
		st.Read, st.Flying, st.Pending = st.Read+ds.Read, st.Flying+ds.Flying, st.Pending+ds.Pending
	}
	return st
}

func (c *Counters) add(other Counters) {
	c.Published += other.Published
	c.Settled += other.Settled
	c.Refused += other.Refused
	c.Deferred += other.Deferred
	c.Parked += other.Parked
	c.Rate += other.Rate
}

// tallyTopics bounds the topics that are counted apart.
const tallyTopics = 1000

// rateSpan is the time over which a rate is taken.
const rateSpan = 10 * time.Second

// tally counts the messages of a destination by topic.
type tally struct {
	mu     sync.Mutex
	topics map[string]*counted
}

// counted are the counters of a topic. Recent is the number of messages published lately, those longer ago
// counting less.
type counted struct {
	Counters
	recent float64
	at     time.Time
}

// of returns the counters of a topic. Called with the lock held.
func (t *tally) of(topic string) *counted {
	c := t.topics[topic]
	if c == nil {
		if t.topics == nil {
			t.topics = map[string]*counted{}
		}
		if len(t.topics) >= tallyTopics && topic != "" {
			return t.of("")
		}
		c = &counted{}
		t.topics[topic] = c
	}
	return c
}

func (c *counted) fade(now time.Time) float64 {
	if c.recent == 0 {
		return 0
	}
	return c.recent * math.Exp(-now.Sub(c.at).Seconds()/rateSpan.Seconds())
}

func (t *tally) answered(batch []*item, verdicts []verdict, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i, it := range batch {
		c := t.of(it.row.Topic)
		switch verdicts[i].kind {
		case delivered:
			c.Published++
			c.recent, c.at = c.fade(now)+1, now
		case deferred:
			c.Deferred++
		}
	}
}

func (t *tally) settled(items []*item) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, it := range items {
		t.of(it.row.Topic).Settled++
	}
}

func (t *tally) refused(it *item) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.of(it.row.Topic).Refused++
}

func (t *tally) parked(it *item) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.of(it.row.Topic).Parked++
}

func (t *tally) read(now time.Time) (sum Counters, topics []TopicStats) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for name, c := range t.topics {
		one := TopicStats{name, c.Counters}
		one.Rate = c.fade(now) / rateSpan.Seconds()
		sum.add(one.Counters)
		topics = append(topics, one)
	}
	slices.SortFunc(topics, func(a, b TopicStats) int { return cmp.Compare(a.Topic, b.Topic) })
	return sum, topics
}
