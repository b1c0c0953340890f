package prom

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace-go/millrace/forwarder"
	"github.com/millrace-go/millrace/outbox"
)

func gauge(to chan<- prometheus.Metric, desc *prometheus.Desc, value float64, labels ...string) {
	to <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
}

func flag(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// forwarderDescs describe the state of a forwarder.
type forwarderDescs struct{ running, healthy, lanes, up, paused, memory, flight, unsettled *prometheus.Desc }

func newForwarderDescs(labels prometheus.Labels) forwarderDescs {
	desc := func(name, help string, names ...string) *prometheus.Desc {
		return prometheus.NewDesc("millrace_forwarder_"+name, help, names, labels)
	}
	return forwarderDescs{
		running:   desc("running", "1 while Run runs."),
		healthy:   desc("healthy", "1 if Health has nothing to say."),
		lanes:     desc("lanes", "Lanes held, of 64 over all replicas."),
		up:        desc("destination_up", "1 if the destination answers, as far as is known.", "destination"),
		paused:    desc("destination_paused", "1 if nothing is sent to the destination because somebody paused it.", "destination"),
		memory:    desc("read_messages", "Messages in memory: to be published, in flight, or to be settled.", "destination"),
		flight:    desc("in_flight_messages", "Messages with the publisher.", "destination"),
		unsettled: desc("unsettled_messages", "Messages with the publisher, or answered and not yet stored.", "destination"),
	}
}

func (d forwarderDescs) describe(to chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{d.running, d.healthy, d.lanes, d.up, d.paused, d.memory, d.flight, d.unsettled} {
		to <- desc
	}
}

func (d forwarderDescs) collect(to chan<- prometheus.Metric, f *forwarder.Forwarder) {
	s := f.Stats()
	gauge(to, d.running, flag(s.Running))
	gauge(to, d.healthy, flag(f.Health(context.Background()) == nil)) // it asks nobody
	gauge(to, d.lanes, float64(s.Lanes))
	for _, dest := range s.Destinations {
		gauge(to, d.up, flag(dest.Err == nil), dest.Name)
		gauge(to, d.paused, flag(dest.Paused), dest.Name)
		gauge(to, d.memory, float64(dest.Read), dest.Name)
		gauge(to, d.flight, float64(dest.Flying), dest.Name)
		gauge(to, d.unsettled, float64(dest.Pending), dest.Name)
	}
}

// outboxDescs describe what lies in an outbox.
type outboxDescs struct{ success, capped, messages, oldest, uncovered, replicas, free, pauses *prometheus.Desc }

func newOutboxDescs(labels prometheus.Labels) outboxDescs {
	desc := func(name, help string, names ...string) *prometheus.Desc {
		return prometheus.NewDesc("millrace_outbox_"+name, help, names, labels)
	}
	return outboxDescs{
		success:   desc("stats_success", "1 if the outbox could be asked; if not, the others of millrace_outbox are absent."),
		capped:    desc("stats_capped", "1 if there is more than is counted."),
		messages:  desc("messages", "Messages by state: ready, delayed, held, sent, dead.", "topic", "state"),
		oldest:    desc("oldest_ready_seconds", "Age of the oldest message that could be sent.", "topic"),
		uncovered: desc("uncovered_messages", "Messages in lanes that do not exist, which nobody reads."),
		replicas:  desc("replicas", "Forwarders whose lease is valid."),
		free:      desc("free_lanes", "Lanes that no forwarder holds, of 64."),
		pauses:    desc("pauses", "Topics and destinations that are paused."),
	}
}

func (d outboxDescs) describe(to chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{d.success, d.capped, d.messages, d.oldest, d.uncovered, d.replicas, d.free, d.pauses} {
		to <- desc
	}
}

func (d outboxDescs) collect(to chan<- prometheus.Metric, ok bool, s outbox.Stats, topics *topics) {
	gauge(to, d.success, flag(ok))
	if !ok {
		return
	}
	gauge(to, d.capped, flag(s.Capped))
	gauge(to, d.uncovered, float64(s.Uncovered))
	gauge(to, d.replicas, float64(s.Replicas))
	gauge(to, d.free, float64(s.FreeLanes))
	gauge(to, d.pauses, float64(len(s.Paused)))
	for topic, t := range sum(s.Topics, topics) {
		gauge(to, d.messages, float64(t.Ready), topic, "ready")
		gauge(to, d.messages, float64(t.Delayed), topic, "delayed")
		gauge(to, d.messages, float64(t.Held), topic, "held")
		gauge(to, d.messages, float64(t.Sent), topic, "sent")
		gauge(to, d.messages, float64(t.Dead), topic, "dead")
		gauge(to, d.oldest, t.Oldest.Seconds(), topic)
	}
}

// sum adds up the topics that share a label.
func sum(all []outbox.TopicStats, topics *topics) map[string]outbox.TopicStats {
	sums := make(map[string]outbox.TopicStats, len(all))
	for _, t := range all {
		label := topics.label(t.Topic)
		s := sums[label]
		s.Ready += t.Ready
		s.Delayed += t.Delayed
		s.Held += t.Held
		s.Sent += t.Sent
		s.Dead += t.Dead
		s.Oldest = max(s.Oldest, t.Oldest)
		sums[label] = s
	}
	return sums
}
