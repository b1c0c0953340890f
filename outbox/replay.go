package outbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace/internal/meta"
	"github.com/millrace-go/millrace/internal/txn"
)

// MetadataReplaces is the metadata of an edited message that holds the id of the one that it was made of.
const MetadataReplaces = meta.Prefix + "replaces"

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
		r.Audit, err = h.audit(ctx, by, action, f, 0, false)
		return err
	})
	began := time.Now()
	retries := 0
	for after := int64(0); err == nil && after < last; {
		var next int64
		var n, done int
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
		after = next
		r.Done += int64(done)
		r.Skipped += int64(n - done)
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
) (next int64, n, done int, err error) {
	s, where, err := f.where()
	if err != nil {
		return 0, 0, 0, err
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
	var rows []chosen
	text := fmt.Sprintf(`SELECT %s, id, lane FROM %s%s ORDER BY %s LIMIT %d`, s.seq, s.table, where, s.seq, size) + h.free()
	err = h.ask(ctx, text, where.args, func(row txn.Scanner) error {
		var c chosen
		err := row.Scan(&c.seq, &c.id, &c.lane)
		rows = append(rows, c)
		return err
	})
	if err != nil {
		return 0, 0, 0, err
	}
	next = last
	var finished []chosen
	if len(rows) > 0 {
		next = rows[len(rows)-1].seq
		if finished, err = do(h, s, rows); err != nil {
			return 0, 0, 0, err
		}
	}
	_, err = h.run(ctx, `UPDATE millrace_audit SET affected = affected + $1, finished = `+truth(next == last)+` WHERE seq = $2`,
		len(finished), audit)
	return next, len(rows), len(finished), err
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
		err = h.event(ctx, idsOf(back), eventReplayed, "", by)
	}
	if err == nil {
		err = h.remove(ctx, s, back)
	}
	var lanes uint64
	for _, r := range back {
		lanes |= 1 << r.lane
	}
	defer h.box.wakes.signal(lanes) // a look too early finds nothing; polling finds it later
	return back, err
}

func (h hand) remove(ctx context.Context, s source, rows []chosen) error {
	_, err := h.run(ctx, `DELETE FROM `+s.table+` WHERE `+s.seq+` IN (`+list(seqsOf(rows))+`)`)
	return err
}

// ReplayEdited publishes msg in the place of the dead message with an id, which is deleted. msg must have
// an id of its own, because consumers may have seen the other one; its metadata MetadataReplaces, and the
// history of both, tell of the other. An empty topic is that of the dead message. Delay, schedule name and
// key are what msg says. See Find for the content to begin with.
func (b *Box) ReplayEdited(ctx context.Context, by By, id, topic string, msg *message.Message) error {
	if err := by.check(); err != nil {
		return err
	}
	if msg != nil && msg.UUID == id {
		return fmt.Errorf("%w: an edited message needs an id of its own", ErrInvalidMessage)
	}
	var lanes uint64
	err := b.byHand(ctx, "edit", func(h hand) error {
		var seq int64
		was := ""
		err := h.ask(ctx, `SELECT seq, topic FROM millrace_dead WHERE id = $1 ORDER BY seq DESC LIMIT 1`+h.free(), []any{id},
			func(row txn.Scanner) error { return row.Scan(&seq, &was) })
		if err == nil && seq == 0 {
			err = fmt.Errorf("%w: dead message %q", ErrNotFound, id)
		}
		if err != nil {
			return err
		}
		if topic == "" {
			topic = was
		}
		entries, err := b.encode(ctx, topic, msg)
		if err != nil {
			return err
		}
		lanes = lanesOf(entries)
		return h.edit(ctx, by, seq, id, entries)
	})
	if err == nil {
		b.wakes.signal(lanes)
	}
	return err
}

func (h hand) edit(ctx context.Context, by By, seq int64, id string, entries []entry) (err error) {
	e := &entries[0]
	if e.metadata, err = withMetadata(e.metadata, MetadataReplaces, id); err != nil {
		return err
	}
	for _, s := range insertions(h.kind, h.box.cfg.Prefix, entries) {
		n, err := h.Exec(ctx, s.SQL, s.Args...)
		if err := s.Check(n, err); err != nil {
			return err
		}
	}
	if _, err := h.run(ctx, `DELETE FROM millrace_dead WHERE seq = $1`, seq); err != nil {
		return err
	}
	if err := h.event(ctx, []string{id}, eventEdited, e.id, by); err != nil {
		return err
	}
	if err := h.event(ctx, []string{e.id}, eventEdit, id, by); err != nil {
		return err
	}
	_, err = h.audit(ctx, by, "edit", map[string]string{"id": id, "new_id": e.id}, 1, true)
	return err
}

func withMetadata(text, name, value string) (string, error) {
	m := map[string]string{}
	if err := json.Unmarshal([]byte(text), &m); err != nil {
		return "", err
	}
	m[name] = value
	out, err := json.Marshal(m)
	return string(out), err
}
