package outbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/millrace-go/millrace/internal/confirmation"
	"github.com/millrace-go/millrace/internal/pattern"
)

// After is what becomes of a message when the broker has it.
type After int

const (
	// Delete forgets it.
	Delete After = iota
	// Keep moves it to the sent messages, where it can be seen until Retention has passed.
	Keep
	// AwaitConfirmation moves it to the sent messages, where it waits until each of Groups has confirmed
	// it, and then for Retention.
	AwaitConfirmation
)

func (a After) String() string {
	switch a {
	case Delete:
		return "delete"
	case Keep:
		return "keep"
	case AwaitConfirmation:
		return "await confirmation"
	}
	return fmt.Sprintf("After(%d)", int(a))
}

// Policy says what happens to messages of some topics when the broker has them. It is written into each
// message at Publish: a change of configuration counts for those that are published after it.
type Policy struct {
	// Topics are names of topics, or patterns: words are separated by dots, * stands for one word, # for
	// any number of words. The first Policy that names a topic counts; a topic that none names has the
	// zero Policy.
	Topics []string
	// After is what becomes of the messages. Default Delete; the rest is then without meaning.
	After After
	// Retention is how long a message is kept: with Keep from when it was sent, with AwaitConfirmation
	// from when it was confirmed by all. Default 7 days.
	Retention time.Duration

	// Groups are the consumer groups that must confirm, at least one. Only for AwaitConfirmation, as all
	// below.
	Groups []string
	// Deadline is how long after it was sent a confirmation is overdue, and the message sent again.
	// Default 1 min.
	Deadline time.Duration
	// MaxAttempts is how often a message is sent before it is dead. Default 5.
	MaxAttempts int
	// MaxAge is how long after it was first sent a message is sent again at all. Default 24 h. Consumers
	// must remember what they have handled for longer.
	MaxAge time.Duration
}

const defaultRetention = 7 * 24 * time.Hour

func (p Policy) withDefaults() Policy {
	if p.Retention == 0 {
		p.Retention = defaultRetention
	}
	if p.Deadline == 0 {
		p.Deadline = time.Minute
	}
	if p.MaxAttempts == 0 {
		p.MaxAttempts = 5
	}
	if p.MaxAge == 0 {
		p.MaxAge = 24 * time.Hour
	}
	return p
}

func (p Policy) check() error {
	var errs []error
	wrong := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("outbox: Config.Policies for %q: "+format, append([]any{p.Topics}, args...)...))
	}
	if len(p.Topics) == 0 {
		wrong("name topics")
	}
	for _, topic := range p.Topics {
		if _, err := pattern.Parse(topic); err != nil {
			wrong("%w", err)
		}
	}
	if p.After < Delete || p.After > AwaitConfirmation {
		wrong("%v is unknown", p.After)
	}
	if p.Retention < 0 || p.Deadline < 0 || p.MaxAge < 0 || p.MaxAttempts < 0 {
		wrong("Retention, Deadline, MaxAge and MaxAttempts must not be negative")
	}
	if p.After == AwaitConfirmation && len(p.Groups) == 0 {
		wrong("AwaitConfirmation needs Groups: the consumer groups that confirm")
	}
	if p.After != AwaitConfirmation && len(p.Groups) > 0 {
		wrong("Groups are only for AwaitConfirmation")
	}
	if d := p.withDefaults(); p.After == AwaitConfirmation && d.MaxAge < d.Deadline {
		wrong("MaxAge (%v) is shorter than Deadline (%v)", d.MaxAge, d.Deadline)
	}
	for i, g := range p.Groups {
		if err := checkText("a group", g, 1, maxGroup); err != nil {
			wrong("%w", err)
		}
		if slices.Contains(p.Groups[:i], g) {
			wrong("group %q is named twice", g)
		}
	}
	return errors.Join(errs...)
}

// Plan is the policy of a message as it was frozen when it was published.
type Plan struct {
	After     After         `json:"after"`
	Retention time.Duration `json:"retention,omitempty"` // nanoseconds, as all below
	// What follows is set for AwaitConfirmation.
	Groups      []string      `json:"groups,omitempty"`
	Deadline    time.Duration `json:"deadline,omitempty"`
	MaxAttempts int           `json:"max_attempts,omitempty"`
	MaxAge      time.Duration `json:"max_age,omitempty"`
	// Sendings is how often it was sent.
	confirmation.Sendings
}

// frozen is a policy as a row holds it. The zero one is that of Delete, which needs nothing.
type frozen struct {
	keep   int
	micros int64  // how long it is kept, or until its confirmation is overdue
	plan   string // JSON
	// metadata are added to a message.
	metadata map[string]string
}

func (p Policy) freeze() frozen {
	if p.After == Delete {
		return frozen{}
	}
	p = p.withDefaults()
	plan := Plan{After: p.After, Retention: p.Retention}
	f := frozen{keep: int(p.After), micros: micros(p.Retention)}
	if p.After == AwaitConfirmation {
		plan.Groups, plan.Deadline, plan.MaxAttempts, plan.MaxAge = p.Groups, p.Deadline, p.MaxAttempts, p.MaxAge
		f.micros = micros(p.Deadline)
	}
	text, err := json.Marshal(plan)
	if err != nil {
		panic("outbox: " + err.Error()) // cannot happen: numbers and valid strings
	}
	f.plan = string(text)
	return f
}

// policies finds the policy of a topic.
type policies struct {
	topics []pattern.List
	frozen []frozen
}

func newPolicies(all []Policy, confirmTopic string) policies {
	var ps policies
	for _, p := range all {
		var topics pattern.List
		for _, text := range p.Topics {
			if topic, err := pattern.Parse(text); err == nil { // the configuration has been checked
				topics = append(topics, topic)
			}
		}
		ps.topics = append(ps.topics, topics)
		f := p.freeze()
		if p.After == AwaitConfirmation {
			f.metadata = p.metadata(confirmTopic)
		}
		ps.frozen = append(ps.frozen, f)
	}
	return ps
}

func (ps policies) of(topic string) frozen {
	for i, topics := range ps.topics {
		if topics.Matches(topic) {
			return ps.frozen[i]
		}
	}
	return frozen{}
}
