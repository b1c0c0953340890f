package outbox

import (
	"context"

	"github.com/millrace-go/millrace/internal/txn"
)

// promote implements dialect. Most calls only look.
func (s *steps) promote(ctx context.Context, grants []Grant) (Promotion, error) {
	lanes, _ := lanesAndEpochs(grants)
	first, err := s.look(ctx, lanes)
	if err != nil || !first.work() {
		return first.promotion(), err
	}
	var v Promotion
	due := 0
	err = s.atomic(ctx, func(q txn.Querier) error {
		held, err := s.held(ctx, q, grants)
		if err != nil {
			return err
		}
		lanes = lanes[:0]
		for _, g := range grants {
			if held[g.Lane] {
				lanes = append(lanes, g.Lane)
			}
		}
		freed, err := s.unhold(ctx, q, lanes)
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
	then, err := s.look(ctx, lanes)
	v.Next, v.overdue = then.wait(), then.late()
	return v, err
}

// unheld is true of held rows, or keys, that no stop of a message that still waits holds.
const unheld = `NOT EXISTS (
	SELECT 1 FROM millrace_stops s JOIN millrace_outbox w ON w.pos = s.pos
	WHERE s.lane = o.lane AND s.destination = o.held AND s.order_key = o.order_key)`

func (s *steps) look(ctx context.Context, lanes []int) (v lookout, err error) {
	query := s.found.translate(rename(`SELECT
		(SELECT {until} FROM millrace_outbox WHERE ready = 0 AND due_at IS NOT NULL AND lane IN (`+list(lanes)+`)),
		(SELECT count(*) FROM (SELECT DISTINCT lane, held, order_key FROM millrace_outbox
			WHERE ready = 0 AND held IS NOT NULL AND lane IN (`+list(lanes)+`)) o WHERE `+unheld+`),
		(SELECT {until} FROM millrace_sent WHERE due_at IS NOT NULL AND lane IN (`+list(lanes)+`))`, s.prefix))
	err = s.pool.Query(ctx, query, nil, func(row txn.Scanner) error { return row.Scan(&v.due, &v.orphans, &v.overdue) })
	return v, err
}

// unhold makes the held rows ready that nothing holds any more.
func (s *steps) unhold(ctx context.Context, q txn.Querier, lanes []int) (int, error) {
	pos, err := s.column(ctx, q, rename(`SELECT pos FROM millrace_outbox o
		WHERE ready = 0 AND held IS NOT NULL AND lane IN (`+list(lanes)+`) AND `+unheld, s.prefix))
	if err != nil || len(pos) == 0 {
		return 0, err
	}
	n, err := q.Exec(ctx, s.changeAt(`held = NULL, ready = 1`, `o.held IS NOT NULL`, pos))
	return int(n), err
}

// ripen makes ready what has become due. The rows are named by position: a range would lock what lies
// beside them.
func (s *steps) ripen(ctx context.Context, q txn.Querier, lanes []int) (int, error) {
	pos, err := s.column(ctx, q, s.found.translate(rename(`SELECT pos FROM millrace_outbox
		WHERE ready = 0 AND lane IN (`+list(lanes)+`) AND due_at <= {now} ORDER BY due_at LIMIT 1000`, s.prefix)))
	if err != nil || len(pos) == 0 {
		return 0, err
	}
	n, err := q.Exec(ctx, s.changeAt(`due_at = NULL, ready = 1`, `o.due_at IS NOT NULL`, pos))
	return int(n), err
}

func (s *steps) column(ctx context.Context, q txn.Querier, query string) (out []int64, err error) {
	err = q.Query(ctx, query, nil, func(row txn.Scanner) error {
		var n int64
		err := row.Scan(&n)
		out = append(out, n)
		return err
	})
	return out, err
}
