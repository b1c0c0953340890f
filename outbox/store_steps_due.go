package outbox

import (
	"context"
	"slices"

	"github.com/millrace-go/millrace/internal/txn"
)

// promote implements dialect. Most calls only look.
func (s *steps) promote(ctx context.Context, grants []Grant) (Promotion, error) {
	lanes, _ := lanesAndEpochs(grants)
	first, orphans, err := s.look(ctx, lanes)
	if err != nil || !first.work() {
		return first.promotion(), err
	}
	var v Promotion
	due := 0
	err = s.atomic(ctx, func(q txn.Querier) error {
		held, err := s.held(ctx, q, grants, s.share)
		if err != nil {
			return err
		}
		lanes = lanes[:0]
		for _, g := range grants {
			if held[g.Lane] {
				lanes = append(lanes, g.Lane)
			}
		}
		freed, err := s.unhold(ctx, q, held, orphans)
		if err != nil {
			return err
		}
		due, err = s.ripen(ctx, q, lanes)
		v = Promotion{Ready: freed + due}
		return err
	})
	if err != nil {
		return Promotion{}, err
	}
	if due == maxPromoted {
		v.Next = soon
		return v, nil
	}
	then, _, err := s.look(ctx, lanes)
	return v.before(then), err
}

// What the rows of steps.waiting are about.
const (
	waitsDue = iota
	waitsHeld
	waitsConfirmation
)

// stopped is a key that is stopped, or held.
type stopped struct {
	lane             int
	destination, key string
}

// look tells what there is to do, and which keys are held that no stop of a message that still waits holds.
func (s *steps) look(ctx context.Context, lanes []int) (v lookout, orphans []stopped, err error) {
	stops, err := s.stops(ctx, lanes)
	if err != nil {
		return v, nil, err
	}
	live := make(map[stopped]bool, len(stops))
	for _, stop := range stops {
		live[stopped{stop.Lane, stop.Destination, stop.Key}] = true
	}
	for len(lanes)+len(stops) > 0 {
		query := s.plain(s.waiting(lanes, stops))
		lanes, stops = nil, nil // behind a key that is an orphan, there may be more
		err = s.pool.Query(ctx, query, nil, func(row txn.Scanner) error {
			var what int
			var until *int64
			var k stopped
			if err := row.Scan(&what, &k.lane, &until, &k.destination, &k.key); err != nil {
				return err
			}
			switch what {
			case waitsDue:
				v.due = sooner(v.due, until)
			case waitsConfirmation:
				v.overdue = sooner(v.overdue, until)
			case waitsHeld:
				if !live[k] {
					live[k], orphans = true, append(orphans, k)
					stops = append(stops, Stop{Lane: k.lane, Destination: k.destination, Key: k.key})
				}
			}
			return nil
		})
		if err != nil || len(orphans) > maxOrphans {
			break
		}
	}
	v.orphans = len(orphans)
	return v, orphans, err
}

// sooner is the smaller one; nil is never.
func sooner(a, b *int64) *int64 {
	if a == nil || b != nil && *b < *a {
		return b
	}
	return a
}

// sqliteWaiting hops through the index of the held keys, from each to the next.
func sqliteWaiting(lanes []int, _ []Stop) string {
	return `WITH RECURSIVE l (lane) AS (SELECT value FROM json_each('` + jsonArray(lanes) + `')),
	h (lane, held, order_key) AS (
		SELECT o.lane, o.held, o.order_key FROM l CROSS JOIN millrace_outbox o ON o.pos = (
			SELECT p.pos FROM millrace_outbox p WHERE p.lane = l.lane AND p.held IS NOT NULL
			ORDER BY p.held, p.order_key, p.pos LIMIT 1)
		UNION ALL
		SELECT o.lane, o.held, o.order_key FROM h CROSS JOIN millrace_outbox o ON o.pos = COALESCE(
			(SELECT p.pos FROM millrace_outbox p WHERE p.lane = h.lane AND p.held = h.held AND p.order_key > h.order_key
			ORDER BY p.order_key, p.pos LIMIT 1),
			(SELECT p.pos FROM millrace_outbox p WHERE p.lane = h.lane AND p.held > h.held
			ORDER BY p.held, p.order_key, p.pos LIMIT 1)))
	SELECT 0, l.lane, (SELECT due_at - {now} FROM millrace_outbox o
		WHERE o.lane = l.lane AND o.due_at IS NOT NULL ORDER BY o.due_at LIMIT 1), '', '' FROM l
	UNION ALL SELECT 1, h.lane, NULL, h.held, h.order_key FROM h
	UNION ALL SELECT 2, l.lane, (SELECT due_at - {now} FROM millrace_sent s
		WHERE s.lane = l.lane AND s.due_at IS NOT NULL ORDER BY s.due_at LIMIT 1), '', '' FROM l`
}

// unhold makes held rows of these keys ready, if still nothing holds them: of each its part of what may be changed at once.
func (s *steps) unhold(ctx context.Context, q txn.Querier, held map[int]bool, orphans []stopped) (ready int, err error) {
	part := max(1, maxPromoted/max(1, len(orphans)))
	for _, k := range orphans {
		if !held[k.lane] {
			continue
		}
		pos, err := s.column(ctx, q, s.text(`SELECT pos {from millrace_outbox millrace_outbox_held}
			WHERE ready = 0 AND lane = $1 AND held = $2 AND order_key = $3 AND NOT EXISTS (
				SELECT 1 FROM millrace_stops s WHERE s.lane = $4 AND s.destination = $5 AND s.order_key = $6
				  AND (SELECT 1 {from millrace_outbox PRIMARY} WHERE millrace_outbox.pos = s.pos) = 1)
			ORDER BY pos LIMIT $7`),
			k.lane, k.destination, k.key, k.lane, k.destination, k.key, part)
		if err != nil {
			return 0, err
		}
		n, err := s.changeLowest(ctx, q, `held = NULL, ready = 1`, `o.held IS NOT NULL`, pos)
		if err != nil {
			return 0, err
		}
		if ready += n; ready >= maxPromoted {
			break
		}
	}
	return ready, nil
}

// changeLowest changes rows up to the first one that somebody else has locked, and reports how many: that one may stay,
// and those behind it would overtake it.
func (s *steps) changeLowest(ctx context.Context, q txn.Querier, set, where string, pos []int64) (int, error) {
	free, err := s.find(ctx, q, pos, s.skip)
	if err != nil {
		return 0, err
	}
	if i := slices.IndexFunc(pos, func(p int64) bool { _, mine := free[p]; return !mine }); i >= 0 {
		pos = pos[:i]
	}
	if len(pos) == 0 {
		return 0, nil
	}
	n, err := q.Exec(ctx, s.changeAt(set, where, pos))
	return int(n), err
}

// ripen makes ready what has become due. The rows are named by position: a range would lock what lies
// beside them.
func (s *steps) ripen(ctx context.Context, q txn.Querier, lanes []int) (int, error) {
	pos, err := s.column(ctx, q, s.plain(`SELECT pos {from millrace_outbox millrace_outbox_due}
		WHERE ready = 0 AND lane IN (`+list(lanes)+`) AND due_at <= {now} ORDER BY due_at LIMIT 1000`))
	if err != nil {
		return 0, err
	}
	return s.changeFree(ctx, q, `due_at = NULL, ready = 1`, `o.due_at IS NOT NULL`, pos)
}

func (s *steps) column(ctx context.Context, q txn.Querier, query string, args ...any) (out []int64, err error) {
	err = q.Query(ctx, query, args, func(row txn.Scanner) error {
		var n int64
		err := row.Scan(&n)
		out = append(out, n)
		return err
	})
	return out, err
}
