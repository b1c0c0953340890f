package prom_test

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	_ "github.com/jackc/pgx/v5/stdlib"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/forwarder"
	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/observe/prom"
	"github.com/millrace-go/millrace/outbox"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func collector(t *testing.T, cfg prom.Config) (*prom.Collector, *prometheus.Registry) {
	t.Helper()
	c, err := prom.New(cfg)
	require.NoError(t, err)
	r := prometheus.NewPedanticRegistry()
	require.NoError(t, r.Register(c))
	return c, r
}

func TestEventsAreCountedUnderTheirLabels(t *testing.T) {
	t.Parallel()
	c, r := collector(t, prom.Config{})
	o := c.Observer()
	ctx := t.Context()
	batch := forwarder.Batch{Destination: "rabbit", Messages: []forwarder.Message{
		{Topic: "orders", Destination: "rabbit", Attempt: 2, CreatedAt: time.Now().Add(-3 * time.Second)},
		{Topic: "bills", Destination: "rabbit", CreatedAt: time.Now().Add(time.Hour)}, // the database's clock is ahead
	}}
	o.OnPublished(o.OnPublish(ctx, batch), batch, []forwarder.Answer{{}, {Outcome: forwarder.Refused, Reason: "no_route"}})
	o.OnSettled(ctx, forwarder.Batch{Messages: batch.Messages[:1]})
	o.OnRefused(ctx, batch.Messages[1], forwarder.Failure{Reason: "no_route"})
	o.OnParked(ctx, batch.Messages[1], forwarder.Failure{Reason: "no_route"})
	o.OnDropped(ctx, batch, forwarder.DropPaused)
	o.OnLanes(ctx, forwarder.LaneChange{Taken: 5, Lost: 2})

	require.NoError(t, testutil.GatherAndCompare(r, strings.NewReader(`
# HELP millrace_forwarder_dropped_messages_total Messages that were read and not published for now: paused, cancelled.
# TYPE millrace_forwarder_dropped_messages_total counter
millrace_forwarder_dropped_messages_total{destination="rabbit",reason="paused"} 2
# HELP millrace_forwarder_lane_changes_total Lanes that came or went: taken, handed_over, lost.
# TYPE millrace_forwarder_lane_changes_total counter
millrace_forwarder_lane_changes_total{kind="handed_over"} 0
millrace_forwarder_lane_changes_total{kind="lost"} 2
millrace_forwarder_lane_changes_total{kind="taken"} 5
# HELP millrace_forwarder_parked_messages_total Messages that were set aside as dead.
# TYPE millrace_forwarder_parked_messages_total counter
millrace_forwarder_parked_messages_total{destination="rabbit",reason="no_route",topic="bills"} 1
# HELP millrace_forwarder_publishes_total Answers of the broker: delivered, refused, unsure (sent again), deferred.
# TYPE millrace_forwarder_publishes_total counter
millrace_forwarder_publishes_total{destination="rabbit",outcome="delivered",topic="orders"} 1
millrace_forwarder_publishes_total{destination="rabbit",outcome="refused",topic="bills"} 1
# HELP millrace_forwarder_settled_messages_total Messages that the broker has and that are gone from the outbox.
# TYPE millrace_forwarder_settled_messages_total counter
millrace_forwarder_settled_messages_total{destination="rabbit",topic="orders"} 1
`), "millrace_forwarder_dropped_messages_total", "millrace_forwarder_lane_changes_total",
		"millrace_forwarder_parked_messages_total", "millrace_forwarder_publishes_total", "millrace_forwarder_settled_messages_total"))

	for name, want := range map[string]struct {
		n   uint64
		sum float64
	}{
		"millrace_forwarder_publish_age_seconds":      {1, 3},
		"millrace_forwarder_publish_duration_seconds": {1, 0},
		"millrace_forwarder_batch_messages":           {1, 2},
		"millrace_forwarder_delivery_attempts":        {1, 2},
	} {
		n, total := histogram(t, r, name)
		require.Equal(t, want.n, n, name)
		require.GreaterOrEqual(t, total, want.sum, name)
	}
}

func histogram(t *testing.T, r *prometheus.Registry, name string) (n uint64, total float64) {
	t.Helper()
	families, err := r.Gather()
	require.NoError(t, err)
	for _, f := range families {
		if f.GetName() == name {
			require.Len(t, f.GetMetric(), 1)
			h := f.GetMetric()[0].GetHistogram()
			return h.GetSampleCount(), h.GetSampleSum()
		}
	}
	t.Fatalf("no %s", name)
	return 0, 0
}

func TestTopicsBeyondTheLimitAreCountedAsOther(t *testing.T) {
	t.Parallel()
	c, r := collector(t, prom.Config{MaxTopics: 3})
	o := c.Observer()
	for i := range 1000 {
		o.OnSettled(t.Context(), forwarder.Batch{Messages: []forwarder.Message{{Topic: fmt.Sprint("topic-", i)}}})
	}
	n, err := testutil.GatherAndCount(r, "millrace_forwarder_settled_messages_total")
	require.NoError(t, err)
	require.Equal(t, 4, n)
	require.NoError(t, testutil.GatherAndCompare(r, strings.NewReader(`
# HELP millrace_forwarder_settled_messages_total Messages that the broker has and that are gone from the outbox.
# TYPE millrace_forwarder_settled_messages_total counter
millrace_forwarder_settled_messages_total{destination="",topic="other"} 997
millrace_forwarder_settled_messages_total{destination="",topic="topic-0"} 1
millrace_forwarder_settled_messages_total{destination="",topic="topic-1"} 1
millrace_forwarder_settled_messages_total{destination="",topic="topic-2"} 1
`), "millrace_forwarder_settled_messages_total"))
}

func TestTheStateOfOutboxAndForwarderIsShownAndAnOutageIsTold(t *testing.T) {
	t.Parallel()
	raw, err := sql.Open("pgx", testenv.Postgres(t))
	require.NoError(t, err)
	defer raw.Close()
	db := millrace.SQL(raw)
	box, err := outbox.New(db, outbox.Config{AllowOutsideTx: true})
	require.NoError(t, err)
	require.NoError(t, box.Migrate(t.Context()))
	for i := range 5 {
		require.NoError(t, box.Publish(t.Context(), fmt.Sprint("topic-", i), message.NewMessage(fmt.Sprint(i), nil)))
	}
	c, r := collector(t, prom.Config{Box: box, Interval: time.Nanosecond, MaxTopics: 2, Labels: prometheus.Labels{"service": "shop"}})
	fwd, err := forwarder.New(box, nowhere{}, forwarder.Config{Destination: "rabbit", Observers: []forwarder.Observer{c.Observer()}})
	require.NoError(t, err)
	c.Watch(fwd)
	require.NoError(t, testutil.GatherAndCompare(r, strings.NewReader(`
# HELP millrace_forwarder_destination_paused 1 if nothing is sent to the destination because somebody paused it.
# TYPE millrace_forwarder_destination_paused gauge
millrace_forwarder_destination_paused{destination="rabbit",service="shop"} 0
# HELP millrace_forwarder_destination_up 1 if the destination answers, as far as is known.
# TYPE millrace_forwarder_destination_up gauge
millrace_forwarder_destination_up{destination="rabbit",service="shop"} 1
# HELP millrace_forwarder_healthy 1 if Health has nothing to say.
# TYPE millrace_forwarder_healthy gauge
millrace_forwarder_healthy{service="shop"} 0
# HELP millrace_forwarder_running 1 while Run runs.
# TYPE millrace_forwarder_running gauge
millrace_forwarder_running{service="shop"} 0
# HELP millrace_outbox_messages Messages by state: ready, delayed, held, sent, dead.
# TYPE millrace_outbox_messages gauge
millrace_outbox_messages{service="shop",state="dead",topic="other"} 0
millrace_outbox_messages{service="shop",state="dead",topic="topic-0"} 0
millrace_outbox_messages{service="shop",state="dead",topic="topic-1"} 0
millrace_outbox_messages{service="shop",state="delayed",topic="other"} 0
millrace_outbox_messages{service="shop",state="delayed",topic="topic-0"} 0
millrace_outbox_messages{service="shop",state="delayed",topic="topic-1"} 0
millrace_outbox_messages{service="shop",state="held",topic="other"} 0
millrace_outbox_messages{service="shop",state="held",topic="topic-0"} 0
millrace_outbox_messages{service="shop",state="held",topic="topic-1"} 0
millrace_outbox_messages{service="shop",state="ready",topic="other"} 3
millrace_outbox_messages{service="shop",state="ready",topic="topic-0"} 1
millrace_outbox_messages{service="shop",state="ready",topic="topic-1"} 1
millrace_outbox_messages{service="shop",state="sent",topic="other"} 0
millrace_outbox_messages{service="shop",state="sent",topic="topic-0"} 0
millrace_outbox_messages{service="shop",state="sent",topic="topic-1"} 0
# HELP millrace_outbox_stats_success 1 if the outbox could be asked; if not, the others of millrace_outbox are absent.
# TYPE millrace_outbox_stats_success gauge
millrace_outbox_stats_success{service="shop"} 1
`), "millrace_forwarder_destination_paused", "millrace_forwarder_destination_up", "millrace_forwarder_healthy", "millrace_forwarder_running", "millrace_outbox_messages", "millrace_outbox_stats_success"))

	require.NoError(t, raw.Close())
	require.NoError(t, testutil.GatherAndCompare(r, strings.NewReader(`
# HELP millrace_outbox_stats_success 1 if the outbox could be asked; if not, the others of millrace_outbox are absent.
# TYPE millrace_outbox_stats_success gauge
millrace_outbox_stats_success{service="shop"} 0
`), "millrace_outbox_stats_success", "millrace_outbox_messages"))
}

func TestAForwardersEventsArriveAtTheCollector(t *testing.T) {
	t.Parallel()
	raw, err := sql.Open("pgx", testenv.Postgres(t))
	require.NoError(t, err)
	defer raw.Close()
	box, err := outbox.New(millrace.SQL(raw), outbox.Config{AllowOutsideTx: true})
	require.NoError(t, err)
	require.NoError(t, box.Migrate(t.Context()))
	c, r := collector(t, prom.Config{Box: box, Interval: time.Nanosecond})
	fwd, err := forwarder.New(box, everywhere{}, forwarder.Config{Lease: time.Minute, Observers: []forwarder.Observer{c.Observer()}})
	require.NoError(t, err)
	c.Watch(fwd)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- fwd.Run(ctx) }()
	for i := range 20 {
		require.NoError(t, box.Publish(t.Context(), "orders", message.NewMessage(fmt.Sprint(i), nil)))
	}
	testenv.Eventually(t, 2*time.Minute, "20 settled messages", func() bool {
		families, err := r.Gather()
		require.NoError(t, err)
		for _, f := range families {
			if f.GetName() == "millrace_forwarder_settled_messages_total" {
				return f.GetMetric()[0].GetCounter().GetValue() == 20
			}
		}
		return false
	})
	n, total := histogram(t, r, "millrace_forwarder_delivery_attempts")
	require.EqualValues(t, 20, n)
	require.EqualValues(t, 20, total)
	cancel()
	require.NoError(t, <-ended)
}

// everywhere is a publisher that takes everything.
type everywhere struct{}

func (everywhere) Publish(string, ...*message.Message) error { return nil }
func (everywhere) Close() error                              { return nil }

// nowhere is a publisher that nobody calls.
type nowhere struct{}

func (nowhere) Publish(string, ...*message.Message) error { return context.Canceled }
func (nowhere) Close() error                              { return nil }

func TestMetricNamesAndUnitsAreAsPrometheusWantsThem(t *testing.T) {
	t.Parallel()
	c, _ := collector(t, prom.Config{})
	problems, err := testutil.CollectAndLint(c)
	require.NoError(t, err)
	require.Empty(t, problems)
}

func TestNewJoinsAllErrors(t *testing.T) {
	t.Parallel()
	_, err := prom.New(prom.Config{Interval: -1, Timeout: -1, MaxTopics: -1})
	for _, what := range []string{"Interval", "Timeout", "MaxTopics"} {
		require.ErrorContains(t, err, what)
	}
}
