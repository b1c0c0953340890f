package takeover

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/millrace-go/millrace/internal/backoff"
	"github.com/millrace-go/millrace/internal/fault"
	"github.com/millrace-go/millrace/internal/txn"
	"github.com/millrace-go/millrace/outbox"
)

// batchTimeout bounds one transaction; mostly it is the wait for another replica, or a stock forwarder.
const batchTimeout = 30 * time.Second

// row is a message of the stock table.
type row struct {
	offset  int64
	xid     string // PostgreSQL only
	uuid    string
	payload []byte
	created string
}

// held runs fn in a transaction that holds the stored offset: nobody else moves or forwards meanwhile.
func (t *Takeover) held(ctx context.Context, limit time.Duration, fn func(ctx context.Context, tx *txn.Tx, s *stock, at position) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	s, err := t.stock(ctx)
	if err != nil {
		return err
	}
	o := txn.Options{Propagation: txn.RequiresNew, Isolation: s.isolation}
	return txn.Run(ctx, t.pool, o, func(ctx context.Context, tx *txn.Tx) error {
		if t.cfg.FromStart {
			if _, err := tx.Exec(ctx, s.create, t.cfg.ConsumerGroup); err != nil {
				return fmt.Errorf("takeover: create the offset: %w", err)
			}
		}
		var at position
		found := false
		err := tx.Query(ctx, s.lock, []any{t.cfg.ConsumerGroup}, func(row txn.Scanner) error {
			found = true
			return s.scan(row, &at)
		})
		switch {
		case err != nil:
			return fmt.Errorf("takeover: lock the offset: %w", err)
		case !found:
			return setupf("the offset of consumer group %q has gone from %s", t.cfg.ConsumerGroup, s.offsets)
		}
		if s.touch != "" {
			if _, err := tx.Exec(ctx, s.touch, t.cfg.ConsumerGroup); err != nil {
				return fmt.Errorf("takeover: lock the offset: %w", err)
			}
		}
		return fn(ctx, tx, s, at)
	})
}

// run is what one Run remembers.
type run struct {
	*Takeover
	from  *position      // the stored offset; that it has changed is the work of a stock forwarder
	stuck map[int64]bool // offsets that were logged
}

// pass moves all that is there once, from the bottom.
func (r *run) pass(ctx context.Context) error {
	size := r.cfg.BatchSize
	for cursor := int64(0); ; {
		var last int64
		var full bool
		err := r.held(ctx, batchTimeout, func(ctx context.Context, tx *txn.Tx, s *stock, at position) error {
			if r.from == nil {
				r.from = &at
			} else if *r.from != at {
				return ErrStockForwarder
			}
			rows, err := read(ctx, tx, s.beyond, s.position(at, cursor), size)
			if err != nil || len(rows) == 0 {
				return err
			}
			last, full = rows[len(rows)-1].offset, len(rows) == size
			return r.move(ctx, tx, s, rows, func(row row, err error) error { r.leave(ctx, row, err); return nil })
		})
		switch duplicate := errors.Is(err, outbox.ErrDuplicateMessage); {
		case duplicate && size > 1: // one by one finds out which
			size = 1
			continue
		case duplicate: // it stays for a later pass
			size = r.cfg.BatchSize
		case err != nil:
			return err
		}
		fault.Point("takeover.moved")
		if !full {
			return nil
		}
		cursor = last
	}
}

// leave logs, once, that a message cannot be moved.
func (r *run) leave(ctx context.Context, row row, err error) {
	if !r.stuck[row.offset] {
		r.stuck[row.offset] = true
		r.log.WarnContext(ctx, "message of the stock outbox stays where it is", "offset", row.offset, "error", err)
	}
}

// move puts rows into the outbox, and takes them out of the table. Those that the outbox does not take stay,
// if refused returns nil for them.
func (t *Takeover) move(ctx context.Context, tx *txn.Tx, s *stock, rows []row, refused func(row, error) error) error {
	var done []row
	for _, r := range rows {
		topic, msg, err := unwrap(r.payload)
		if err == nil {
			err = t.box.Publish(ctx, topic, msg)
			if err != nil && !errors.Is(err, outbox.ErrInvalidMessage) {
				return err
			}
		}
		if err == nil {
			done = append(done, r)
		} else if err := refused(r, err); err != nil {
			return err
		}
	}
	if len(done) == 0 {
		return nil
	}
	n, err := tx.Exec(ctx, s.remove(done))
	if err == nil && n != int64(len(done)) {
		err = fmt.Errorf("%d of %d rows were there", n, len(done))
	}
	if err != nil {
		return fmt.Errorf("takeover: delete what was moved: %w", err)
	}
	return nil
}

// read returns rows, with {limit} put into the query.
func read(ctx context.Context, q txn.Querier, query string, args []any, limit int) (rows []row, err error) {
	query = strings.ReplaceAll(query, "{limit}", strconv.Itoa(limit))
	err = q.Query(ctx, query, args, func(scanner txn.Scanner) error {
		var r row
		err := scanner.Scan(&r.offset, &r.xid, &r.uuid, &r.payload, &r.created)
		rows = append(rows, r)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("takeover: read the messages: %w", err)
	}
	return rows, nil
}

// watch returns ErrStockForwarder if there is one. It looks twice before it says so: the server may still
// hold a statement of one that has ended, until it gets the lock.
func (t *Takeover) watch(ctx context.Context) error {
	err := t.watchOnce(ctx)
	if errors.Is(err, ErrStockForwarder) && backoff.Sleep(ctx, t.cfg.StockPollInterval) {
		err = t.watchOnce(ctx)
	}
	return err
}

// watchOnce holds the stored offset until a stock forwarder would have come for it.
func (t *Takeover) watchOnce(ctx context.Context) error {
	length := 3 * t.cfg.StockPollInterval
	nobody := errors.New("nobody came")
	err := t.held(ctx, length+batchTimeout, func(ctx context.Context, tx *txn.Tx, s *stock, _ position) error {
		seen := 0
		for until := time.Now().Add(length); time.Now().Before(until); {
			waiting, err := s.waiters(ctx, tx)
			if err != nil {
				return fmt.Errorf("takeover: look for a stock forwarder: %w", err)
			}
			// Once may be another Takeover that has begun to wait between the database's looks at who waits
			// and at what they do.
			if seen++; waiting == 0 {
				seen = 0
			}
			if seen == 2 {
				return ErrStockForwarder
			}
			if !backoff.Sleep(ctx, min(length/10, 50*time.Millisecond)) {
				return ctx.Err()
			}
		}
		return nobody
	})
	if errors.Is(err, nobody) {
		return nil
	}
	return err
}

// waiters counts who waits for the stored offset and is no Takeover.
func (s *stock) waiters(ctx context.Context, q txn.Querier) (n int, err error) {
	if s.refresh != "" {
		if err := q.Query(ctx, s.refresh, nil, func(txn.Scanner) error { return nil }); err != nil {
			return 0, err
		}
	}
	err = q.Query(ctx, s.waiting, []any{s.pattern()}, func(row txn.Scanner) error { return row.Scan(&n) })
	return n, err
}
