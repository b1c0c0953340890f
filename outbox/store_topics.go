package outbox

import (
	"context"
	"slices"

	"github.com/millrace-go/millrace/internal/txn"
)

const topicsQuery = `WITH RECURSIVE t (topic) AS (
	SELECT (SELECT o.topic FROM millrace_outbox o WHERE o.{ready} ORDER BY o.topic LIMIT 1)
	UNION ALL
	SELECT (SELECT o.topic FROM millrace_outbox o WHERE o.{ready} AND o.topic > t.topic ORDER BY o.topic LIMIT 1)
	FROM t WHERE t.topic IS NOT NULL)
SELECT 'ready', topic FROM t WHERE topic IS NOT NULL
UNION ALL SELECT kind, name FROM millrace_pauses`

// topicsFromBottom are the topics without a bound, which may be below what another process has made ready.
func (s *sqlStore) topicsFromBottom(ctx context.Context) (Topics, error) {
	return ask(s, ctx, "topics", func(d dialect) (Topics, error) {
		if _, bounded := d.(*postgres); bounded {
			return s.hop(ctx)
		}
		return d.topics(ctx)
	})
}

// hop finds the topics by hopping from one to the next in the index.
func (s *sqlStore) hop(ctx context.Context) (Topics, error) {
	var t topics
	err := s.query(ctx, "topics", topicsQuery, nil, func(row txn.Scanner) error {
		var kind, name string
		err := row.Scan(&kind, &name)
		t.add(kind, name)
		return err
	})
	return t.answer(), err
}

// topics gathers what is ready and what is paused.
type topics struct{ ready, stopped, destinations []string }

func (t *topics) add(kind, name string) {
	switch kind {
	case "ready":
		t.ready = append(t.ready, name)
	case string(PausedTopic):
		t.stopped = append(t.stopped, name)
	case string(PausedDestination):
		t.destinations = append(t.destinations, name)
	}
}

func (t *topics) answer() Topics {
	ready := slices.DeleteFunc(t.ready, func(topic string) bool { return slices.Contains(t.stopped, topic) })
	slices.Sort(ready)
	slices.Sort(t.destinations)
	return Topics{Ready: ready, Paused: t.destinations}
}
