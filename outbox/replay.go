package outbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/millrace-go/millrace/internal/txn"
)

// Bulk says how something is done to many messages.
type Bulk struct {
	// DryRun only counts them.
	DryRun bool
	// Batch is the number of messages in one transaction. Default 100, at most 1000.
	Batch int
	// PerSecond bounds the messages in a second. Default: no bound.
	PerSecond float64
}

func (o Bulk) check() error {
	if o.Batch < 0 || o.Batch > maxPage || o.PerSecond < 0 {
		return fmt.Errorf("outbox: Bulk: want Batch from 0 to %d, and PerSecond not negative", maxPage)
	}
	return nil
}

// Report is what was done to many messages.
type Report struct {
	// Audit is the number of the entry in the audit, 0 for a dry run.
	Audit int64
	// Matched messages met the filter when the work began; only these were considered.
	Matched int64
	// Done is how many it was done to.
	Done int64
	// Skipped were left as they were, because a message with their id waits already.
	Skipped int64
}

// Replay puts messages back into the outbox, to be sent again with their ids, with a new position: behind
// what waits of their key, and among themselves in the order in which they came into their state. Their
// attempts begin anew, and the policy is that of their first publish.
//
// f.State is StateDead (the default), or StateSent or StateDone for messages that were kept. The set is
// fixed at the beginning: a message that dies again meanwhile is not sent a second time. If ctx ends, or
// on an error, what the batches before have done stays, and the Report says how much.
func (b *Box) Replay(ctx context.Context, by By, f Filter, o Bulk) (Report, error) {
	return b.bulk(ctx, by, "replay", f, o, func(h hand, s source, rows []chosen) ([]chosen, error) {
		return h.replay(ctx, by, s, rows)
	})
}

// Discard deletes dead messages for good. Their history stays until it is purged.
func (b *Box) Discard(ctx context.Context, by By, f Filter, o Bulk) (Report, error) {
	if f.State != "" && f.State != StateDead {
		return Report{}, errors.New("outbox: discard: only dead messages are discarded")
	}
	return b.bulk(ctx, by, "discard", f, o, func(h hand, s source, rows []chosen) ([]chosen, error) {
		if err := h.event(ctx, idsOf(rows), eventDiscarded, "", by); err != nil {
			return nil, err
		}
		return rows, h.remove(ctx, s, rows)
	})
}

// chosen is a row of a source that something is done to.
type chosen struct {
	seq  int64
	id   string
	lane int
}

func idsOf(rows []chosen) (ids []string) {
	for _, r := range rows {
		ids = append(ids, r.id)
	}
	return ids
}

func seqsOf(rows []chosen) (seqs []int64) {
	for _, r := range rows {
		seqs = append(seqs, r.seq)
	}
	return seqs
}

func lanesOfChosen(rows []chosen) (lanes uint64) {
	for _, r := range rows {
		lanes |= 1 << r.lane
	}
	return lanes
}

// bulk does something to the messages of a filter, batch by batch.
func (b *Box) bulk(ctx context.Context, by By, action string, f Filter, o Bulk, do func(hand, source, []chosen) ([]chosen, error)) (Report, error) {
	s, where, err := f.where()
	if err := errors.Join(by.check(), o.check(), err); err != nil {
		return Report{}, err
	}
	if s.table == sources[StateWaiting].table {
		return Report{}, fmt.Errorf("outbox: %s: the message waits already", action)
	}
	var r Report
	var last int64
	err = b.store.once(ctx, action, fmt.Sprintf(`SELECT count(*), COALESCE(max(%s), 0) FROM %s%s`, s.seq, s.table, where), where.args,
		func(row txn.Scanner) error { return row.Scan(&r.Matched, &last) })
	if err != nil || o.DryRun {
		return r, err
	}
	err = b.byHand(ctx, action, func(h hand) (err error) {
		r.Audit, err = h.audit(ctx, by, action, f, 0, last == 0)
		return err
	})
	began := time.Now()
	retries := 0
	for after := int64(0); err == nil && after < last; {
		var next int64
		var n int
		var done []chosen
		err = b.byHand(ctx, action, func(h hand) (err error) {
			next, n, done, err = h.batch(ctx, r.Audit, f, o, after, last, do)
			return err
		})
		if errors.Is(err, ErrDuplicateMessage) && retries < 3 { // published since the look: now it is seen
			retries, err = retries+1, nil
			continue
		}
		if err != nil {
			break
		}
		after, retries = next, 0
		r.Done += int64(len(done))
		r.Skipped += int64(n - len(done))
		b.wakes.signal(lanesOfChosen(done))
		err = o.pause(ctx, began, r.Done)
	}
	return r, err
}

// pause waits until so many messages are not more than PerSecond.
func (o Bulk) pause(ctx context.Context, began time.Time, done int64) error {
	if o.PerSecond == 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(time.Until(began.Add(time.Duration(float64(done) / o.PerSecond * float64(time.Second)))))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// batch does something to the next messages, and answers with the last one of them: last if there was none.
func (h hand) batch(ctx context.Context, audit int64, f Filter, o Bulk, after, last int64,
	do func(hand, source, []chosen) ([]chosen, error),
) (next int64, n int, done []chosen, err error) {
	s, where, err := f.where()
	if err != nil {
		return 0, 0, nil, err
	}
	where.add(s.seq+" > ?", after)
	where.add(s.seq+" <= ?", last)
	size := o.Batch
	if size == 0 {
		size = 100
	}
	if o.PerSecond > 0 {
		size = max(min(size, int(o.PerSecond)), 1)
	}
	next, rows, err := h.choose(ctx, s, where, size)
	switch {
	case err != nil:
		return 0, 0, nil, err
	case next == 0:
		next = last
	}
	if len(rows) > 0 {
		if done, err = do(h, s, rows); err != nil {
			return 0, 0, nil, err
		}
	}
	_, err = h.run(ctx, `UPDATE millrace_audit SET affected = affected + $1, finished = `+truth(next == last)+` WHERE seq = $2`,
		len(done), audit)
	return next, len(rows), done, err
}

// choose locks the next rows, but for those that somebody else has locked, and answers with the number of the last one. They are
// looked for without locks: on its way to them, MySQL would lock others for a moment, and what somebody else wants would be
// passed over.
func (h hand) choose(ctx context.Context, s source, where *clause, most int) (last int64, rows []chosen, err error) {
	var seqs []int64
	err = h.ask(ctx, fmt.Sprintf(`SELECT %s FROM %s%s ORDER BY %s LIMIT %d`, s.seq, s.table, where, s.seq, most), where.args, func(row txn.Scanner) error {
		err := row.Scan(&last)
		seqs = append(seqs, last)
		return err
	})
	if err != nil || len(seqs) == 0 {
		return 0, nil, err
	}
	where.add(s.seq + ` IN (` + list(seqs) + `)`)
	text := fmt.Sprintf(`SELECT %s, id, lane {from %s PRIMARY}%s ORDER BY %s`, s.seq, s.table, where, s.seq) + h.free()
	err = h.ask(ctx, text, where.args, func(row txn.Scanner) error {
		var c chosen
		err := row.Scan(&c.seq, &c.id, &c.lane)
		rows = append(rows, c)
		return err
	})
	return last, rows, err
}

// replay puts rows back into the outbox, but for those whose id waits there.
func (h hand) replay(ctx context.Context, by By, s source, rows []chosen) ([]chosen, error) {
	taken := map[string]bool{}
	err := h.ask(ctx, `SELECT id FROM millrace_outbox WHERE id IN (`+params(len(rows))+`)`, anyOf(idsOf(rows)), func(row txn.Scanner) error {
		var id string
		err := row.Scan(&id)
		taken[id] = true
		return err
	})
	if err != nil {
		return nil, err
	}
	var back []chosen
	for _, r := range rows {
		if !taken[r.id] {
			taken[r.id] = true
			back = append(back, r)
		}
	}
	if len(back) == 0 {
		return nil, nil
	}
	const columns = `id, lane, topic, order_key, keep, keep_us, plan, size, metadata, payload`
	_, err = h.run(ctx, `INSERT INTO millrace_outbox (`+columns+`, created_at)
		SELECT `+columns+`, {now} FROM `+s.table+` WHERE `+s.seq+` IN (`+list(seqsOf(back))+`) ORDER BY `+s.seq)
	if duplicate(h.kind, err) {
		return nil, fmt.Errorf("%w: %w", ErrDuplicateMessage, quiet(err))
	}
	if err == nil {
		err = h.anew(ctx, idsOf(back))
	}
	if err == nil {
		err = h.event(ctx, idsOf(back), eventReplayed, "", by)
	}
	if err == nil {
		err = h.remove(ctx, s, back)
	}
	return back, err
}

// remove deletes rows that are locked, and touches no other: two operators would wait for each other crosswise.
func (h hand) remove(ctx context.Context, s source, rows []chosen) error {
	_, err := h.run(ctx, `{delete `+s.table+` PRIMARY} WHERE `+s.seq+` IN (`+list(seqsOf(rows))+`)`)
	return err
}
