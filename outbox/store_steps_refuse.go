package outbox

import (
	"context"
	"strconv"

	"github.com/millrace-go/millrace/internal/txn"
)

func (s *steps) calm(ctx context.Context, g Grant) error {
	_, err := s.under(ctx, g, func(q txn.Querier) (bool, error) {
		_, err := s.run(ctx, q, `UPDATE millrace_lanes SET crashes = 0 WHERE lane = $1 AND crashes <> 0`, g.Lane)
		return true, err
	})
	return err
}

func (s *steps) attempt(ctx context.Context, g Grant, r Ref, attempt int) (bool, error) {
	return s.under(ctx, g, func(q txn.Querier) (bool, error) {
		n, err := s.run(ctx, q, `{update millrace_outbox PRIMARY} SET attempts = $1 WHERE pos = $2 AND id = $3 AND lane = $4 AND attempts = $5`,
			attempt, r.Pos, r.ID, g.Lane, attempt-1)
		return n == 1, err
	})
}

func (s *steps) refuse(ctx context.Context, g Grant, f Refused) (bool, error) {
	return s.under(ctx, g, func(q txn.Querier) (bool, error) {
		n, err := s.run(ctx, q, `{update millrace_outbox PRIMARY} SET attempts = $1, ready = 0, held = NULL, due_at = {after $2}
			WHERE pos = $3 AND id = $4 AND lane = $5 AND attempts <= $6`,
			f.Attempt, micros(f.RetryIn), f.Pos, f.ID, g.Lane, f.Attempt)
		if err != nil || n == 0 {
			return false, err
		}
		if err := s.remember(ctx, q, f, eventRefused); err != nil || !f.Stop {
			return err == nil, err
		}
		// A stop that is there already gives way: what failed last is what the key waits for.
		if _, err := s.run(ctx, q, `{delete millrace_stops PRIMARY} WHERE lane = $1 AND destination = $2
			AND order_key = (SELECT order_key FROM millrace_outbox WHERE pos = $3)`, g.Lane, f.Destination, f.Pos); err != nil {
			return false, err
		}
		_, err = s.run(ctx, q, `INSERT INTO millrace_stops (lane, destination, order_key, pos, retry_at)
			SELECT lane, $1, order_key, pos, due_at FROM millrace_outbox WHERE pos = $2 AND order_key <> ''`, f.Destination, f.Pos)
		return true, err
	})
}

// hold implements dialect. Only who has locked the lane changes its stops, so a look at them is enough.
func (s *steps) hold(ctx context.Context, g Grant, destination string, rows []Ref) (bool, error) {
	return s.under(ctx, g, func(q txn.Querier) (bool, error) {
		stopped := s.found.translate(`EXISTS (SELECT 1 FROM millrace_stops s WHERE s.lane = $1 AND s.destination = $2
			AND s.order_key = o.order_key AND s.pos < o.pos)`)
		ids := make(map[int64]string, len(rows))
		for _, r := range rows {
			ids[r.Pos] = r.ID
		}
		var behind []int64
		query := s.pickAt(`o.pos, o.id, o.lane = `+strconv.Itoa(g.Lane)+` AND o.ready = 1 AND `+stopped, positions(rows), ``)
		err := q.Query(ctx, query, []any{g.Lane, destination}, func(row txn.Scanner) error {
			var pos int64
			var id string
			var found bool
			err := row.Scan(&pos, &id, &found)
			if found && ids[pos] == id {
				behind = append(behind, pos)
			}
			return err
		})
		if err != nil {
			return false, err
		}
		return true, s.changeAll(ctx, q, s.found.translate(`ready = 0, held = $1`), `o.ready = 1`, behind, destination)
	})
}

// lift implements dialect.
func (s *steps) lift(ctx context.Context, g Grant, destination, key string) (bool, error) {
	return s.byPieces(ctx, g, func(q txn.Querier) (ok, more bool, err error) {
		more, err = s.lifted(ctx, q, g.Lane, destination, key)
		return true, more, err
	})
}

// byPieces runs fn under a grant, in one transaction after the other, as long as it says that there is more.
func (s *steps) byPieces(ctx context.Context, g Grant, fn func(q txn.Querier) (ok, more bool, err error)) (ok bool, err error) {
	for more := true; more && err == nil; {
		more = false
		ok, err = s.under(ctx, g, func(q txn.Querier) (ok bool, err error) {
			ok, more, err = fn(q)
			return ok, err
		})
	}
	return ok, err
}

// maxLifted is how many rows one transaction sets free.
const maxLifted = 1000

// lifted sets free what a stop holds, from the bottom, and removes the stop with the last of it. It reports whether
// there is more. As long as the stop is there, nothing that is published meanwhile overtakes what is held yet,
// whoever holds the lane.
func (s *steps) lifted(ctx context.Context, q txn.Querier, lane int, destination, key string) (more bool, err error) {
	pos, err := s.column(ctx, q, s.text(`SELECT pos {from millrace_outbox millrace_outbox_held}
		WHERE ready = 0 AND lane = $1 AND held = $2 AND order_key = $3 ORDER BY pos LIMIT $4`), lane, destination, key, maxLifted)
	if err == nil {
		err = s.changeAll(ctx, q, `held = NULL, ready = 1`, `o.held IS NOT NULL`, pos)
	}
	if err != nil || len(pos) == maxLifted {
		return err == nil, err
	}
	_, err = s.run(ctx, q, `{delete millrace_stops PRIMARY} WHERE lane = $1 AND destination = $2 AND order_key = $3`, lane, destination, key)
	return false, err
}

// park implements dialect.
func (s *steps) park(ctx context.Context, g Grant, f Refused) (bool, error) {
	return s.byPieces(ctx, g, func(q txn.Querier) (ok, more bool, err error) {
		there, err := s.lockAll(ctx, q, []int64{f.Pos})
		if err != nil || there[f.Pos].id != f.ID || there[f.Pos].lane != g.Lane {
			return false, false, err
		}
		if more, err = s.liftStopsOf(ctx, q, g.Lane, f.Pos); err != nil || more {
			return true, more, err
		}
		if there[f.Pos].named {
			if err := s.unnameParked(ctx, q, f.Ref); err != nil {
				return false, false, err
			}
		}
		return true, false, s.bury(ctx, q, f)
	})
}

// unnameParked deletes the name of a row that is locked, if it has it yet. Who cancels it has the name locked and
// wants the row: it is not waited for.
func (s *steps) unnameParked(ctx context.Context, q txn.Querier, r Ref) error {
	rows := []Ref{r}
	taken, err := s.takeNames(ctx, q, rows)
	if err != nil {
		return err
	}
	named, err := s.named(ctx, q, rows)
	if err == nil && named[r.Pos].there && !taken[r.ID] {
		err = errLocked
	}
	if err != nil {
		return err
	}
	return s.unnameAll(ctx, q, []int64{r.Pos})
}

// bury moves a row that is locked to the dead messages.
func (s *steps) bury(ctx context.Context, q txn.Querier, f Refused) error {
	if _, err := s.run(ctx, q, `INSERT INTO millrace_dead (destination, reason, error, attempts, died_at,
			pos, id, lane, topic, order_key, keep, keep_us, plan, size, metadata, payload, created_at)
		SELECT $1, $2, $3, CASE WHEN attempts > $4 THEN attempts ELSE $5 END, {now},
			pos, id, lane, topic, order_key, keep, keep_us, plan, size, metadata, payload, created_at
		FROM millrace_outbox WHERE pos = $6`, f.Destination, f.Reason, f.Error, f.Attempt, f.Attempt, f.Pos); err != nil {
		return err
	}
	if _, err := s.run(ctx, q, `{delete millrace_outbox PRIMARY} WHERE pos = $1`, f.Pos); err != nil {
		return err
	}
	return s.remember(ctx, q, f, eventParked)
}

// remember writes a line of a message's history.
func (s *steps) remember(ctx context.Context, q txn.Querier, f Refused, event string) error {
	if event == eventRefused && f.Attempt > mostHistory {
		return nil
	}
	_, err := s.run(ctx, q, `INSERT INTO millrace_history (id, at, event, attempt, destination, reason, error)
		VALUES ($1, {now}, $2, $3, $4, $5, $6)`, f.ID, event, f.Attempt, f.Destination, f.Reason, f.Error)
	return err
}

// liftStopsOf lifts the stops that a message caused, and reports whether there is more of it to do.
func (s *steps) liftStopsOf(ctx context.Context, q txn.Querier, lane int, pos int64) (more bool, err error) {
	var stops []Stop
	err = q.Query(ctx, s.text(`SELECT destination, order_key {from millrace_stops PRIMARY} WHERE lane = $1 AND pos = $2`),
		[]any{lane, pos}, func(row txn.Scanner) error {
			var stop Stop
			err := row.Scan(&stop.Destination, &stop.Key)
			stops = append(stops, stop)
			return err
		})
	for _, stop := range stops {
		if err != nil || more {
			break
		}
		more, err = s.lifted(ctx, q, lane, stop.Destination, stop.Key)
	}
	return more, err
}
