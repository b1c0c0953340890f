package confirmation

import (
	"strconv"
	"strings"
	"sync"
	"time"
)

// Pace is what a forwarder remembers between two looks at what is overdue: how many messages it may send again
// now, and whom it has probed. Its zero value is ready to use.
type Pace struct {
	mu     sync.Mutex
	probes map[string]time.Time // when a group that is silent was last asked, by group and topic
	tokens float64
	filled time.Time
}

// Round is one such look.
type Round struct {
	pace    *Pace
	now     time.Time
	allowed int
	again   int
}

// Begin begins a look. PerSecond bounds what is sent again.
func (p *Pace) Begin(now time.Time, perSecond float64) *Round {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.filled.IsZero() {
		p.tokens = perSecond
	} else {
		p.tokens = min(max(perSecond, 1), p.tokens+perSecond*now.Sub(p.filled).Seconds())
	}
	p.filled = now
	return &Round{pace: p, now: now, allowed: int(p.tokens)}
}

// Again is how many messages are sent again.
func (r *Round) Again() int { return r.again }

// Spend notes that they are: what was decided has been stored.
func (r *Round) Spend() {
	r.pace.mu.Lock()
	defer r.pace.mu.Unlock()
	r.pace.tokens -= float64(r.again)
}

// mayProbe reports whether a silent group may be asked again, and notes that it is.
func (p *Pace) mayProbe(name string, every time.Duration, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if last, asked := p.probes[name]; asked && now.Sub(last) < every {
		return false
	}
	if p.probes == nil {
		p.probes = map[string]time.Time{}
	}
	p.probes[name] = now
	return true
}

// Decision is what becomes of an overdue message: one of the four.
type Decision struct {
	// Dead is why it is dead.
	Dead string
	// Again sends it again; Counts says that this is an attempt, and not a probe.
	Again, Counts bool
	// Later is when to look at it the next time.
	Later time.Duration
}

// laterDue is for what cannot be sent again now.
const laterDue = 5 * time.Second

// Decide says what becomes of an overdue message that Judge had nothing to say about. Heard is when each group
// last confirmed anything, in microseconds since 1970; waits, that a message with its id waits to be sent.
func (r *Round) Decide(a Awaited, missing []string, heard map[string]int64, waits bool) Decision {
	silent, probe := r.silence(a, missing, heard)
	switch {
	case a.SinceFirst() > a.MaxAge:
		return Decision{Dead: "not confirmed by " + strings.Join(missing, ", ") + " within " + a.MaxAge.String()}
	case silent && !probe:
		return Decision{Later: a.Deadline}
	case !silent && a.Attempts() >= a.MaxAttempts:
		return Decision{Dead: "not confirmed by " + strings.Join(missing, ", ") + " after " + strconv.Itoa(a.Attempts()) + " attempts"}
	case waits || r.again >= r.allowed:
		return Decision{Later: laterDue}
	}
	r.again++
	return Decision{Again: true, Counts: !silent}
}

// silence reports whether one of the groups has not been heard of at all since the message was sent: it is
// taken to be down, and sending it everything again and again would only fill its queue. One message is
// sent as a probe now and then; it and the others keep their attempts.
func (r *Round) silence(a Awaited, missing []string, heard map[string]int64) (silent, probe bool) {
	for _, g := range missing {
		if heard[g] >= a.SentAt {
			continue
		}
		silent = true
		if r.pace.mayProbe(g+" "+a.Topic, a.Deadline, r.now) {
			probe = true
		}
	}
	return silent, probe
}
