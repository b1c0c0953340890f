package outbox

import (
	"context"

	"github.com/millrace-go/millrace/internal/txn"
)

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
		if _, err := s.run(ctx, q, `DELETE FROM millrace_stops WHERE lane = $1 AND destination = $2
			AND order_key = (SELECT order_key FROM millrace_outbox WHERE pos = $3)`, g.Lane, f.Destination, f.Pos); err != nil {
			return false, err
		}
		_, err = s.run(ctx, q, `INSERT INTO millrace_stops (lane, destination, order_key, pos, retry_at)
			SELECT lane, $1, order_key, pos, due_at FROM millrace_outbox WHERE pos = $2 AND order_key <> ''`, f.Destination, f.Pos)
		return true, err
	})
}

func (s *steps) hold(ctx context.Context, g Grant, destination string, rows []Ref) (bool, error) {
	return s.under(ctx, g, func(q txn.Querier) (bool, error) {
		for _, r := range rows {
			if _, err := s.run(ctx, q, `{update millrace_outbox PRIMARY} SET ready = 0, held = $1
				WHERE pos = $2 AND id = $3 AND lane = $4 AND ready = 1 AND EXISTS (SELECT 1 FROM millrace_stops s
					WHERE s.lane = $5 AND s.destination = $6 AND s.order_key = millrace_outbox.order_key AND s.pos < millrace_outbox.pos)`,
				destination, r.Pos, r.ID, g.Lane, g.Lane, destination); err != nil {
				return false, err
			}
		}
		return true, nil
	})
}

func (s *steps) lift(ctx context.Context, g Grant, destination, key string) (bool, error) {
	return s.under(ctx, g, func(q txn.Querier) (bool, error) {
		return true, s.lifted(ctx, q, g.Lane, destination, key)
	})
}

func (s *steps) lifted(ctx context.Context, q txn.Querier, lane int, destination, key string) error {
	if _, err := s.run(ctx, q, `DELETE FROM millrace_stops WHERE lane = $1 AND destination = $2 AND order_key = $3`,
		lane, destination, key); err != nil {
		return err
	}
	_, err := s.run(ctx, q, `{update millrace_outbox millrace_outbox_held} SET held = NULL, ready = 1
		WHERE ready = 0 AND lane = $1 AND held = $2 AND order_key = $3`, lane, destination, key)
	return err
}

func (s *steps) park(ctx context.Context, g Grant, f Refused) (bool, error) {
	return s.under(ctx, g, func(q txn.Querier) (bool, error) {
		n, err := s.run(ctx, q, `INSERT INTO millrace_dead (destination, reason, error, attempts, died_at,
				pos, id, lane, topic, order_key, keep, keep_us, plan, size, metadata, payload, created_at)
			SELECT $1, $2, $3, CASE WHEN attempts > $4 THEN attempts ELSE $5 END, {now},
				pos, id, lane, topic, order_key, keep, keep_us, plan, size, metadata, payload, created_at
			FROM millrace_outbox WHERE pos = $6 AND id = $7 AND lane = $8`,
			f.Destination, f.Reason, f.Error, f.Attempt, f.Attempt, f.Pos, f.ID, g.Lane)
		if err != nil || n == 0 {
			return false, err
		}
		if n, err = s.run(ctx, q, `{delete millrace_outbox PRIMARY} WHERE pos = $1 AND id = $2`, f.Pos, f.ID); err != nil || n == 0 {
			return false, err
		}
		for _, names := range []string{`{delete millrace_schedules millrace_schedules_id}`, `{delete millrace_sending PRIMARY}`} {
			if _, err := s.run(ctx, q, names+` WHERE id = $1`, f.ID); err != nil {
				return false, err
			}
		}
		if err := s.remember(ctx, q, f, eventParked); err != nil {
			return false, err
		}
		return true, s.liftStopsOf(ctx, q, g.Lane, f.Pos)
	})
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

// liftStopsOf lifts the stops that a message caused.
func (s *steps) liftStopsOf(ctx context.Context, q txn.Querier, lane int, pos int64) error {
	var stops []Stop
	err := q.Query(ctx, s.text(`SELECT destination, order_key FROM millrace_stops WHERE lane = $1 AND pos = $2`),
		[]any{lane, pos}, func(row txn.Scanner) error {
			var stop Stop
			err := row.Scan(&stop.Destination, &stop.Key)
			stops = append(stops, stop)
			return err
		})
	if err != nil {
		return err
	}
	for _, stop := range stops {
		if err := s.lifted(ctx, q, lane, stop.Destination, stop.Key); err != nil {
			return err
		}
	}
	return nil
}
