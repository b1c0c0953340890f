package outbox

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/millrace-go/millrace/internal/confirmation"
	"github.com/millrace-go/millrace/internal/txn"
)

// Reasons of dead messages that had been sent.
const (
	// ReasonFailed: a consumer group gave the message up.
	ReasonFailed = "consumer_failed"
	// ReasonUnconfirmed: it was not confirmed after the last attempt, or at the age of Policy.MaxAge.
	ReasonUnconfirmed = "unconfirmed"
)

// bury moves a sent message to the dead, and has OnDead say what follows from that.
func (h hand) bury(ctx context.Context, u unconfirmed, reason, text string) error {
	_, err := h.run(ctx, `INSERT INTO millrace_dead (origin, destination, reason, error, attempts, died_at,
			pos, id, lane, topic, order_key, keep, keep_us, plan, size, metadata, payload, created_at)
		SELECT 'sent', '', $1, $2, $3, {now}, pos, id, lane, topic, order_key, keep, keep_us, plan, size, metadata, payload, created_at
		FROM millrace_sent WHERE seq = $4`, reason, clip(text, 500), u.plan.Attempts(), u.seq)
	if err == nil {
		_, err = h.run(ctx, `DELETE FROM millrace_sent WHERE seq = $1`, u.seq)
	}
	if err == nil {
		_, err = h.run(ctx, `INSERT INTO millrace_history (id, at, event, attempt, reason, error) VALUES ($1, {now}, $2, $3, $4, $5)`,
			u.ref.ID, eventParked, u.plan.Attempts(), reason, clip(text, 500))
	}
	if err != nil {
		return err
	}
	h.box.log.ErrorContext(ctx, "a sent message is dead", "message_id", u.ref.ID, "topic", u.topic, "reason", reason, "attempts", u.plan.Attempts())
	onDead := h.box.cfg.Confirming.OnDead
	if onDead == nil {
		return nil
	}
	record, err := h.lastDead(ctx, u.ref.ID)
	if err != nil {
		return err
	}
	if err := onDead(ctx, record); err != nil {
		return fmt.Errorf("outbox: OnDead: %w", err)
	}
	return nil
}

func (h hand) lastDead(ctx context.Context, id string) (r Record, err error) {
	err = h.ask(ctx, `SELECT `+sources[StateDead].columns(true)+` FROM millrace_dead WHERE id = $1 ORDER BY seq DESC LIMIT 1`, []any{id},
		func(row txn.Scanner) error {
			var err error
			r, err = scanRecord(row, true)
			return err
		})
	return r, err
}

// late records confirmations of messages that are dead.
func (b *Box) late(ctx context.Context, all []confirmation.Confirmation) error {
	var ids []string
	for _, c := range all {
		if c.Outcome == confirmation.Done {
			ids = append(ids, c.ID)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	dead := map[string]bool{}
	err := b.store.query(ctx, "late confirmation", `SELECT id FROM millrace_dead WHERE id IN (`+params(len(ids))+`)`, anyOf(ids),
		func(row txn.Scanner) error {
			var id string
			err := row.Scan(&id)
			dead[id] = true
			return err
		})
	for _, c := range all {
		if err == nil && c.Outcome == confirmation.Done && dead[c.ID] {
			err = b.tellLate(ctx, c)
		}
	}
	return err
}

func (b *Box) tellLate(ctx context.Context, c confirmation.Confirmation) error {
	var r Record
	err := b.byHand(ctx, "late confirmation", func(h hand) (err error) {
		if r, err = h.lastDead(ctx, c.ID); err != nil || r.Seq == 0 {
			return err
		}
		_, err = h.run(ctx, `INSERT INTO millrace_history (id, at, event, reason) VALUES ($1, {now}, $2, $3)`, c.ID, eventLate, c.Group)
		return err
	})
	if err != nil || r.Seq == 0 {
		return err
	}
	b.log.WarnContext(ctx, "a dead message was confirmed", "message_id", c.ID, "topic", r.Topic, "group", c.Group)
	if b.cfg.Confirming.OnLate != nil {
		b.cfg.Confirming.OnLate(ctx, r, Confirmed{Group: c.Group, Outcome: string(c.Outcome), Sending: c.Sending, Error: c.Reason, At: c.At})
	}
	return nil
}

const eventLate = "confirmed late"

// anew lets messages that wait again begin anew: what was said against them is forgotten, and so is how often
// they were sent, but for the number of the sending. Who has confirmed need not do so again.
func (h hand) anew(ctx context.Context, ids []string) error {
	if _, err := h.run(ctx, `DELETE FROM millrace_confirmations WHERE outcome <> 'done' AND id IN (`+params(len(ids))+`)`, anyOf(ids)...); err != nil {
		return err
	}
	type fresh struct {
		plan     Plan
		metadata string
	}
	waiting := map[int64]fresh{}
	err := h.ask(ctx, `SELECT pos, plan, metadata FROM millrace_outbox WHERE keep = 2 AND id IN (`+params(len(ids))+`)`, anyOf(ids), func(row txn.Scanner) error {
		var pos int64
		var text string
		var f fresh
		if err := row.Scan(&pos, &text, &f.metadata); err != nil {
			return err
		}
		if err := json.Unmarshal([]byte(text), &f.plan); err == nil { // else it is for the operator to see later
			f.plan.Sendings = f.plan.Anew()
			waiting[pos] = f
		}
		return nil
	})
	for pos, f := range waiting {
		if err == nil {
			err = h.stamp(ctx, pos, f.plan, f.metadata)
		}
	}
	return err
}

// stamp writes into a message that waits which sending it will be.
func (h hand) stamp(ctx context.Context, pos int64, plan Plan, metadata string) error {
	text, metadata, err := plan.stamped(metadata)
	if err == nil {
		_, err = h.run(ctx, `UPDATE millrace_outbox SET plan = $1, metadata = $2, keep_us = $3 WHERE pos = $4`,
			text, metadata, micros(plan.overdue()), pos)
	}
	return err
}

// stamped is a plan as it is stored, and metadata that tell the consumer of it.
func (p Plan) stamped(metadata string) (plan, stamped string, err error) {
	m := map[string]string{}
	if err := json.Unmarshal([]byte(metadata), &m); err != nil {
		return "", "", err
	}
	p.Stamp(m)
	out, err := json.Marshal(m)
	if err != nil {
		return "", "", err
	}
	text, err := json.Marshal(p)
	return string(text), string(out), err
}

// overdue is how long after its next sending a confirmation is overdue.
func (p Plan) overdue() time.Duration { return confirmation.Overdue(p.Deadline, p.Sendings) }

// awaited is what there is to be decided about a message that was sent.
func (p Plan) awaited(topic string, sentAt int64, age time.Duration) confirmation.Awaited {
	return confirmation.Awaited{
		Topic: topic, Groups: p.Groups, Sendings: p.Sendings, SentAt: sentAt, Age: age,
		Deadline: p.Deadline, MaxAttempts: p.MaxAttempts, MaxAge: p.MaxAge,
	}
}
