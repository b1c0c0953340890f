// Package prom shows what an outbox holds and what a forwarder does as Prometheus metrics.
//
//	metrics, err := prom.New(prom.Config{Box: box})
//	fwd, err := forwarder.New(box, pub, forwarder.Config{Observers: []forwarder.Observer{metrics.Observer()}})
//	metrics.Watch(fwd)
//	prometheus.MustRegister(metrics)
//
// docs/observability.md lists the metrics and the alerts that they serve.
package prom

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace-go/millrace/forwarder"
	"github.com/millrace-go/millrace/outbox"
)

// Config is the configuration of a Collector. The zero value is right for a process without an outbox of
// its own.
type Config struct {
	// Box is the outbox whose contents are shown. Nil: none. Each process that shows it asks the database;
	// one per service is enough.
	Box *outbox.Box
	// Interval is for how long one answer of Box.Stats is shown again, however often metrics are collected.
	// Default 15 s.
	Interval time.Duration
	// Timeout bounds Box.Stats. Default 5 s.
	Timeout time.Duration
	// MaxTopics is how many topics get a label of their own, the first ones that are seen; the others are
	// added up as "other". Default 50.
	MaxTopics int
	// Labels are put on every metric: what tells two forwarders in one process apart.
	Labels prometheus.Labels
	// Logger gets why the outbox could not be asked. Default: nothing.
	Logger *slog.Logger
}

// Collector is a prometheus.Collector. Safe for concurrent use.
type Collector struct {
	cfg    Config
	events *events
	topics *topics

	mu        sync.Mutex
	watched   *forwarder.Forwarder
	stats     outbox.Stats
	asked     time.Time
	succeeded bool

	forwarder forwarderDescs
	outbox    outboxDescs
}

var _ prometheus.Collector = (*Collector)(nil)

// New checks cfg and joins all its errors. It registers nothing and asks nobody.
func New(cfg Config) (*Collector, error) {
	var errs []error
	if cfg.Interval < 0 {
		errs = append(errs, errors.New("prom: Config.Interval is negative"))
	} else if cfg.Interval == 0 {
		cfg.Interval = 15 * time.Second
	}
	if cfg.Timeout < 0 {
		errs = append(errs, errors.New("prom: Config.Timeout is negative"))
	} else if cfg.Timeout == 0 {
		cfg.Timeout = 5 * time.Second
	}
	if cfg.MaxTopics < 0 {
		errs = append(errs, errors.New("prom: Config.MaxTopics is negative"))
	} else if cfg.MaxTopics == 0 {
		cfg.MaxTopics = 50
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	known := &topics{most: cfg.MaxTopics, known: make(map[string]bool)}
	return &Collector{
		cfg: cfg, topics: known, events: newEvents(cfg.Labels, known),
		forwarder: newForwarderDescs(cfg.Labels), outbox: newOutboxDescs(cfg.Labels),
	}, nil
}

// Observer counts the events of a forwarder: give it to forwarder.Config.Observers, of one forwarder.
func (c *Collector) Observer() forwarder.Observer { return c.events.observer() }

// Watch shows the state of a forwarder too; it replaces the one before.
func (c *Collector) Watch(f *forwarder.Forwarder) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.watched = f
}

// Describe implements prometheus.Collector.
func (c *Collector) Describe(to chan<- *prometheus.Desc) {
	c.events.describe(to)
	c.forwarder.describe(to)
	c.outbox.describe(to)
}

// Collect implements prometheus.Collector.
func (c *Collector) Collect(to chan<- prometheus.Metric) {
	c.events.collect(to)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.watched != nil {
		c.forwarder.collect(to, c.watched)
	}
	if c.cfg.Box != nil {
		c.ask()
		c.outbox.collect(to, c.succeeded, c.stats, c.topics)
	}
}

// ask asks the outbox, if the last answer is too old.
func (c *Collector) ask() {
	if !c.asked.IsZero() && time.Since(c.asked) < c.cfg.Interval {
		return
	}
	// Collect has no context.
	ctx, cancel := context.WithTimeout(context.Background(), c.cfg.Timeout)
	defer cancel()
	stats, err := c.cfg.Box.Stats(ctx)
	if err != nil {
		c.cfg.Logger.Warn("outbox not asked for its metrics", "error", err)
	}
	c.stats, c.succeeded, c.asked = stats, err == nil, time.Now()
}

// other stands for all topics beyond Config.MaxTopics.
const other = "other"

// topics bounds the number of values that the label topic has.
type topics struct {
	most int

	mu    sync.Mutex
	known map[string]bool
}

// label returns the topic, or other.
func (t *topics) label(topic string) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.known[topic]:
	case len(t.known) < t.most:
		t.known[topic] = true
	default:
		return other
	}
	return topic
}
