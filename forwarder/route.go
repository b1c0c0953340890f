package forwarder

import (
	"context"
	"errors"
	"fmt"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace/internal/pattern"
)

// Route sends topics to a destination of their own.
//
// Each destination has a window of messages, calls of its publisher and a back-off of its own: one that is
// dead or slow leaves the others as they were.
type Route struct {
	// Name of the destination: the stops of keys are stored under it, and it is paused and counted by it. It
	// is needed, differs from every other and from Config.Destination, and has at most 200 bytes.
	Name string
	// Topics are patterns. Words are separated by dots, * stands for one word and # for any number of
	// words, as in AMQP: "orders.*" matches "orders.placed", "orders.#" also "orders" and
	// "orders.placed.v2". The first route that matches a topic has it.
	Topics []string
	// Publisher to send with; it may be that of another route. Nil: the publisher given to New.
	Publisher message.Publisher

	// OnFailure, MaxAttempts and Batches replace those of Config, if not zero.
	OnFailure   Policy
	MaxAttempts int
	Batches     int
}

// maxName is what the outbox stores of the name of a destination, in bytes.
const maxName = 200

// table says where topics go.
type table struct {
	excluded pattern.List
	routes   []pattern.List // one for each Config.Routes
}

// route returns the number of the route that has a topic, len(routes) for that of no route. False: it
// is excluded.
func (t table) route(topic string) (int, bool) {
	if t.excluded.Matches(topic) {
		return 0, false
	}
	for i, ps := range t.routes {
		if ps.Matches(topic) {
			return i, true
		}
	}
	return len(t.routes), true
}

// split sorts topics by route; the last one has what no other route matches.
func (t table) split(topics []string) [][]string {
	parts := make([][]string, len(t.routes)+1)
	for _, topic := range topics {
		if i, ok := t.route(topic); ok {
			parts[i] = append(parts[i], topic)
		}
	}
	return parts
}

// newTable checks the routes of a configuration and says everything that is wrong with them.
func newTable(c Config, pub message.Publisher) (table, error) {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf("forwarder: "+format, args...)) }
	var t table
	var before []pattern.Pattern // all patterns so far
	parse := func(where string, texts []string) (ps pattern.List) {
		for _, text := range texts {
			p, err := pattern.Parse(text)
			if err != nil {
				bad("%s: %w", where, err)
				continue
			}
			for _, earlier := range before {
				if earlier.Covers(p) {
					bad("%s: %q is never reached: an earlier pattern has all its topics", where, text)
					break
				}
			}
			before, ps = append(before, p), append(ps, p)
		}
		return ps
	}
	t.excluded = parse("Config.Exclude", c.Exclude)
	names := map[string]bool{c.Destination: true}
	for i, r := range c.Routes {
		where := fmt.Sprintf("Config.Routes[%d] (%q)", i, r.Name)
		if names[r.Name] && r.Name != "" {
			bad("%s: another destination has that name", where)
		}
		names[r.Name] = true
		if r.Publisher == nil && pub == nil {
			bad("%s: Publisher is nil, and so is the publisher given to New", where)
		}
		r.check(func(format string, args ...any) { bad("%s: %s", where, fmt.Sprintf(format, args...)) })
		t.routes = append(t.routes, parse(where, r.Topics))
	}
	if pub == nil && len(c.Routes) == 0 {
		bad("the publisher is nil, and there are no Config.Routes")
	}
	return t, errors.Join(errs...)
}

// check says what is wrong with the route whatever the others are.
func (r Route) check(bad func(format string, args ...any)) {
	switch {
	case r.Name == "":
		bad("Name is missing")
	case r.Name == away || len(r.Name) > maxName:
		bad("this cannot be a name: it needs 1 to %d bytes, and %q is reserved", maxName, away)
	}
	if len(r.Topics) == 0 {
		bad("Topics is empty: \"#\" matches every topic")
	}
	if !r.OnFailure.known() {
		bad("OnFailure is %d: StopKey or SkipKey are known", r.OnFailure)
	}
	if r.MaxAttempts < 0 || r.Batches < 0 {
		bad("MaxAttempts and Batches must be positive, or 0 for those of Config")
	}
}

// applied is the configuration of a route's pipeline.
func (r Route) applied(c Config) Config {
	if r.OnFailure != 0 {
		c.OnFailure = r.OnFailure
	}
	if r.MaxAttempts > 0 {
		c.MaxAttempts = r.MaxAttempts
	}
	if r.Batches > 0 {
		c.Batches = r.Batches
	}
	return c
}

// nowhere is where the topics go that no route matches, if New was given no publisher: each of their
// messages is refused, so that it ends among the dead and not in silence.
type nowhere struct{}

func (nowhere) Publish(topic string, _ ...*message.Message) error { return noRoute{topic} }
func (nowhere) Close() error                                      { return nil }

func (nowhere) PublishBatch(_ context.Context, topics []string, _ []*message.Message) []error {
	errs := make([]error, len(topics))
	for i, topic := range topics {
		errs[i] = noRoute{topic}
	}
	return errs
}

type noRoute struct{ topic string }

func (noRoute) Refused() bool  { return true }
func (noRoute) Reason() string { return "no_route" }
func (r noRoute) Error() string {
	return fmt.Sprintf("forwarder: no route has topic %q: add one to Config.Routes, or give New a publisher", r.topic)
}
