package prom

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace-go/millrace/forwarder"
)

// events are the metrics that an Observer counts.
type events struct {
	topics *topics

	published, settled, refused, parked, dropped, lanes *prometheus.CounterVec
	age, duration, batch, attempts                      *prometheus.HistogramVec
}

func newEvents(labels prometheus.Labels, topics *topics) *events {
	counter := func(name, help string, names ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "millrace_forwarder_" + name, Help: help, ConstLabels: labels}, names)
	}
	histogram := func(name, help string, buckets []float64) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "millrace_forwarder_" + name, Help: help, ConstLabels: labels, Buckets: buckets,
		}, []string{"destination"})
	}
	return &events{
		topics: topics,
		published: counter("publishes_total", "Answers of the broker: delivered, refused, unsure (sent again), deferred.",
			"topic", "destination", "outcome"),
		settled: counter("settled_messages_total", "Messages that the broker has and that are gone from the outbox.", "topic", "destination"),
		refused: counter("refused_attempts_total", "Attempts that the broker refused and that are repeated.", "topic", "destination", "reason"),
		parked:  counter("parked_messages_total", "Messages that were set aside as dead.", "topic", "destination", "reason"),
		dropped: counter("dropped_messages_total", "Messages that were read and not published for now: paused, cancelled.", "destination", "reason"),
		lanes:   counter("lane_changes_total", "Lanes that came or went: taken, handed_over, lost.", "kind"),
		age: histogram("publish_age_seconds", "Time from the insert of a message to the broker's confirmation, delays included.",
			[]float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 3600}),
		duration: histogram("publish_duration_seconds", "Time that one call of the publisher took.",
			[]float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}),
		batch:    histogram("batch_messages", "Messages in one call of the publisher.", []float64{1, 2, 5, 10, 25, 50, 100, 250, 500, 1000}),
		attempts: histogram("delivery_attempts", "Attempts that a delivered message took.", []float64{1, 2, 3, 4, 5, 7, 10, 15, 20}),
	}
}

func (e *events) all() []prometheus.Collector {
	return []prometheus.Collector{
		e.published, e.settled, e.refused, e.parked, e.dropped, e.lanes, e.age, e.duration, e.batch, e.attempts,
	}
}

func (e *events) describe(to chan<- *prometheus.Desc) {
	for _, c := range e.all() {
		c.Describe(to)
	}
}

func (e *events) collect(to chan<- prometheus.Metric) {
	for _, c := range e.all() {
		c.Collect(to)
	}
}

// began is when a call of the publisher began, in its context.
type began struct{}

func (e *events) observer() forwarder.Observer {
	return forwarder.Observer{
		OnPublish: func(ctx context.Context, b forwarder.Batch) context.Context {
			e.batch.WithLabelValues(b.Destination).Observe(float64(len(b.Messages)))
			return context.WithValue(ctx, began{}, time.Now())
		},
		OnPublished: e.onPublished,
		OnSettled: func(_ context.Context, b forwarder.Batch) {
			for _, m := range b.Messages {
				e.settled.WithLabelValues(e.topics.label(m.Topic), m.Destination).Inc()
			}
		},
		OnRefused: func(_ context.Context, m forwarder.Message, f forwarder.Failure) {
			e.refused.WithLabelValues(e.topics.label(m.Topic), m.Destination, f.Reason).Inc()
		},
		OnParked: func(_ context.Context, m forwarder.Message, f forwarder.Failure) {
			e.parked.WithLabelValues(e.topics.label(m.Topic), m.Destination, f.Reason).Inc()
		},
		OnDropped: func(_ context.Context, b forwarder.Batch, why forwarder.DropReason) {
			e.dropped.WithLabelValues(b.Destination, string(why)).Add(float64(len(b.Messages)))
		},
		OnLanes: func(_ context.Context, c forwarder.LaneChange) {
			e.lanes.WithLabelValues("taken").Add(float64(c.Taken))
			e.lanes.WithLabelValues("handed_over").Add(float64(c.HandedOver))
			e.lanes.WithLabelValues("lost").Add(float64(c.Lost))
		},
	}
}

func (e *events) onPublished(ctx context.Context, b forwarder.Batch, answers []forwarder.Answer) {
	now := time.Now()
	if start, ok := ctx.Value(began{}).(time.Time); ok {
		e.duration.WithLabelValues(b.Destination).Observe(now.Sub(start).Seconds())
	}
	age, attempts := e.age.WithLabelValues(b.Destination), e.attempts.WithLabelValues(b.Destination)
	for i, m := range b.Messages {
		outcome := answers[i].Outcome
		e.published.WithLabelValues(e.topics.label(m.Topic), b.Destination, outcome.String()).Inc()
		if outcome != forwarder.Delivered {
			continue
		}
		// Two clocks: the database's and this machine's.
		age.Observe(max(now.Sub(m.CreatedAt).Seconds(), 0))
		attempts.Observe(float64(max(m.Attempt, 1)))
	}
}
