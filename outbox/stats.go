package outbox

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/millrace-go/millrace/internal/txn"
)

// StatsLimit bounds what Stats counts: ready messages of one topic, and all delayed, held, sent and dead
// ones of the outbox. What is more is not looked at.
const StatsLimit = 100_000

// Stats is what lies in an outbox.
type Stats struct {
	// Topics are those of which something is there, by name.
	Topics []TopicStats
	// Capped is true if StatsLimit was reached somewhere: numbers are then lower than the truth.
	Capped bool
	// Uncovered is the number of ready messages in lanes that do not exist, which no forwarder reads. It
	// is 0 unless somebody changed the tables by hand.
	Uncovered int64
	// Replicas is the number of forwarders whose lease has not ended, FreeLanes how many of the 64 lanes
	// none of them holds.
	Replicas, FreeLanes int
	Paused              []Pause

	missing []int // lanes without a row
}

// TopicStats is what lies in an outbox of one topic.
type TopicStats struct {
	Topic string
	// Ready messages can be sent now, Delayed ones wait for their time or back-off, Held ones stand behind
	// a message of their key that fails.
	Ready, Delayed, Held int64
	// Oldest is the age of the oldest ready message, by the database's clock.
	Oldest time.Duration
	// Sent messages are kept or wait for their confirmations; Dead ones were set aside.
	Sent, Dead int64
}

// Waiting is the number of messages that have not been sent.
func (t TopicStats) Waiting() int64 { return t.Ready + t.Delayed + t.Held }

// Stats counts what is there. Whatever the size of the outbox, it reads at most StatsLimit entries of an
// index for each topic that has ready messages, and three times StatsLimit rows for the rest; the numbers
// of one answer are not of one moment. Once in some seconds is often enough.
func (b *Box) Stats(ctx context.Context) (Stats, error) {
	var v Stats
	topics := map[string]*TopicStats{}
	of := func(topic string) *TopicStats {
		if topics[topic] == nil {
			topics[topic] = &TopicStats{Topic: topic}
		}
		return topics[topic]
	}
	if err := b.lanesAndPauses(ctx, &v); err != nil {
		return Stats{}, err
	}
	names, err := b.store.topicsFromBottom(ctx)
	if err != nil {
		return Stats{}, err
	}
	for _, topic := range append(names.Ready, pausedTopics(v.Paused)...) {
		if err := b.statsOf(ctx, of(topic), &v); err != nil {
			return Stats{}, err
		}
	}
	for _, group := range groups {
		total := int64(0)
		err := b.store.once(ctx, "stats", fmt.Sprintf(group.query, b.statsLimit+1), nil, func(row txn.Scanner) error {
			var topic string
			var n int64
			err := row.Scan(&topic, &n)
			*group.into(of(topic)) += n
			total += n
			return err
		})
		if err != nil {
			return Stats{}, err
		}
		v.Capped = v.Capped || total > int64(b.statsLimit)
	}
	for _, topic := range slices.Sorted(maps.Keys(topics)) {
		if t := *topics[topic]; t.Waiting()+t.Sent+t.Dead > 0 {
			v.Topics = append(v.Topics, t)
		}
	}
	return v, nil
}

func pausedTopics(all []Pause) (topics []string) {
	for _, p := range all {
		if p.Kind == PausedTopic {
			topics = append(topics, p.Name)
		}
	}
	return topics
}

// groups are what is counted over all topics at once.
var groups = []struct {
	query string
	into  func(*TopicStats) *int64
}{
	{`SELECT topic, count(*) FROM (SELECT topic {from millrace_outbox millrace_outbox_due} WHERE {unready} AND due_at IS NOT NULL LIMIT %d) o GROUP BY topic`,
		func(t *TopicStats) *int64 { return &t.Delayed }},
	{`SELECT topic, count(*) FROM (SELECT topic {from millrace_outbox millrace_outbox_held} WHERE {unready} AND held IS NOT NULL LIMIT %d) o GROUP BY topic`,
		func(t *TopicStats) *int64 { return &t.Held }},
	{`SELECT topic, count(*) FROM (SELECT topic FROM millrace_sent ORDER BY seq DESC LIMIT %d) o GROUP BY topic`,
		func(t *TopicStats) *int64 { return &t.Sent }},
	{`SELECT topic, count(*) FROM (SELECT topic FROM millrace_dead ORDER BY seq DESC LIMIT %d) o GROUP BY topic`,
		func(t *TopicStats) *int64 { return &t.Dead }},
}

// statsOf counts the ready messages of a topic. The oldest one is the lowest of some lane: it is looked
// for at the bottom of each.
func (b *Box) statsOf(ctx context.Context, t *TopicStats, v *Stats) error {
	err := b.store.once(ctx, "stats", fmt.Sprintf(`SELECT
			(SELECT count(*) FROM (SELECT 1 FROM millrace_outbox o WHERE o.{ready} AND o.topic = $1 LIMIT %d) r),
			(SELECT count(*) FROM (SELECT 1 FROM millrace_outbox o WHERE o.{ready} AND o.topic = $2 AND o.lane < 0 LIMIT 1000) r)
			+ (SELECT count(*) FROM (SELECT 1 FROM millrace_outbox o WHERE o.{ready} AND o.topic = $3 AND o.lane > 63 LIMIT 1000) r)
			+ (SELECT count(*) FROM (SELECT 1 FROM millrace_outbox o WHERE o.{ready} AND o.topic = $4 AND o.lane IN (%s) LIMIT 1000) r)`, b.statsLimit+1, list(v.missing)),
		[]any{t.Topic, t.Topic, t.Topic, t.Topic}, func(row txn.Scanner) error {
			var uncovered int64
			err := row.Scan(&t.Ready, &uncovered)
			v.Uncovered += uncovered
			return err
		})
	if err != nil {
		return err
	}
	v.Capped = v.Capped || t.Ready > int64(b.statsLimit)
	return b.store.once(ctx, "stats", `SELECT COALESCE({age created_at}, 0) FROM millrace_outbox WHERE pos = (
			SELECT min(bottom) FROM (
				SELECT (SELECT pos {from millrace_outbox millrace_outbox_ready} WHERE {ready} AND topic = $1 AND millrace_outbox.lane = l.lane ORDER BY pos LIMIT 1) AS bottom
				FROM millrace_lanes l) lanes)`,
		[]any{t.Topic}, func(row txn.Scanner) error {
			var age int64
			err := row.Scan(&age)
			t.Oldest = max(time.Duration(age)*time.Microsecond, 0)
			return err
		})
}

// lanesAndPauses fills in what forwarders are there, and what is missing.
func (b *Box) lanesAndPauses(ctx context.Context, v *Stats) (err error) {
	survey, err := b.store.Survey(ctx)
	if err != nil {
		return err
	}
	v.Replicas, v.FreeLanes = survey.Replicas, survey.FreeLanes
	if v.Paused, err = b.Pauses(ctx); err != nil {
		return err
	}
	there := map[int]bool{}
	err = b.store.once(ctx, "stats", `SELECT lane FROM millrace_lanes`, nil, func(row txn.Scanner) error {
		var lane int
		err := row.Scan(&lane)
		there[lane] = true
		return err
	})
	for lane := range Lanes {
		if !there[lane] {
			v.missing = append(v.missing, lane)
		}
	}
	return err
}
