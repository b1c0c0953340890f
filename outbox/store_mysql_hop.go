package outbox

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/millrace-go/millrace/internal/txn"
)

// MySQL and MariaDB find the next value in an index if the one before is a constant of the statement. If it
// comes from a row, as in a recursive query, they read all that lies between. GROUP BY hops only if the
// statistics say that it is worth it, and these are old when a backlog has just come.

// mostHops is from how many constants on GROUP BY is taken all the same.
const mostHops = 200

// hex is a text as a constant. None is x”: MariaDB takes it for a string.
func hex(text string) string { return fmt.Sprintf("x'%x'", text) }

// mysqlWaiting asks each lane for its earliest time and, of the held keys, for the first one and the one
// behind each that is stopped: if these are all stopped, so are all.
func mysqlWaiting(lanes []int, stops []Stop) string {
	const (
		due  = `(SELECT %d, lane, TIMESTAMPDIFF(MICROSECOND, {now}, due_at), '', '' {from %s} WHERE %slane = %d AND due_at > '1000-01-01' ORDER BY due_at LIMIT 1)`
		held = `(SELECT 1, lane, NULL, held, order_key {from millrace_outbox millrace_outbox_held} WHERE ready = 0 AND lane = %d AND %s LIMIT 1)`
	)
	parts := make([]string, 0, 3*len(lanes)+2*len(stops))
	for _, lane := range lanes {
		parts = append(parts,
			fmt.Sprintf(due, waitsDue, "millrace_outbox millrace_outbox_due", "ready = 0 AND ", lane),
			fmt.Sprintf(due, waitsConfirmation, "millrace_sent millrace_sent_due", "", lane))
	}
	if len(stops) > mostHops {
		parts = append(parts, `(SELECT 1, lane, NULL, held, order_key {from millrace_outbox millrace_outbox_held}
			WHERE ready = 0 AND lane IN (`+list(lanes)+`) AND held IS NOT NULL GROUP BY ready, lane, held, order_key)`)
		return strings.Join(parts, " UNION ALL ")
	}
	for _, lane := range lanes {
		parts = append(parts, fmt.Sprintf(held, lane, `held IS NOT NULL ORDER BY held, order_key`))
	}
	for _, s := range stops {
		destination := hex(s.Destination)
		parts = append(parts,
			fmt.Sprintf(held, s.Lane, `held = `+destination+` AND order_key > `+hex(s.Key)+` ORDER BY order_key`),
			fmt.Sprintf(held, s.Lane, `held > `+destination+` ORDER BY held, order_key`))
	}
	return strings.Join(parts, " UNION ALL ")
}

// mysqlTopics are topics that had rows which were ready.
type mysqlTopics struct {
	mu    sync.Mutex
	names []string
}

func (t *mysqlTopics) get() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.names)
}

// set remembers also those that have nothing ready now, which will often be back. Too many are forgotten.
func (t *mysqlTopics) set(known, ready []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.names = known; len(known) > mostHops {
		t.names = ready
	}
}

// topics implements dialect. It asks for the first topic and the one behind each that is known: if these
// are all known, there are no others. A new one is asked for the one behind it in turn.
func (d *mysql) topics(ctx context.Context) (Topics, error) {
	known := d.seen.get()
	var t topics
	for ask := append([]string{""}, known...); len(ask) > 0; {
		found, err := d.next(ctx, ask)
		if err != nil {
			return Topics{}, err
		}
		all := len(ask) > mostHops
		ask = nil
		for _, topic := range found.ready {
			if slices.Contains(t.ready, topic) {
				continue
			}
			t.ready = append(t.ready, topic)
			if !slices.Contains(known, topic) && !all {
				ask = append(ask, topic)
			}
		}
		t.stopped, t.destinations = found.stopped, found.destinations
	}
	for _, topic := range t.ready {
		if !slices.Contains(known, topic) {
			known = append(known, topic)
		}
	}
	d.seen.set(known, slices.Clone(t.ready))
	return t.answer(), nil
}

// next lists the topic behind each of these, or all if these are many, and what is paused.
func (d *mysql) next(ctx context.Context, after []string) (t topics, err error) {
	parts := []string{`SELECT kind, name FROM millrace_pauses`}
	if len(after) > mostHops {
		parts = append(parts, `(SELECT 'ready', topic {from millrace_outbox millrace_outbox_ready} WHERE {ready} AND topic > x'' GROUP BY ready, topic)`)
	} else {
		for _, topic := range after {
			parts = append(parts, `(SELECT 'ready', topic {from millrace_outbox millrace_outbox_ready}
				WHERE {ready} AND topic > `+hex(topic)+` ORDER BY topic LIMIT 1)`)
		}
	}
	err = d.once(ctx, "topics", strings.Join(parts, " UNION ALL "), nil, func(row txn.Scanner) error {
		var kind, name string
		err := row.Scan(&kind, &name)
		t.add(kind, name)
		return err
	})
	return t, err
}
