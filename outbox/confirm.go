package outbox

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace/internal/confirmation"
	"github.com/millrace-go/millrace/internal/meta"
	"github.com/millrace-go/millrace/internal/txn"
)

// Confirming is what concerns messages whose policy is AwaitConfirmation.
type Confirming struct {
	// Topic is where consumers confirm; it travels with each message. Default "millrace.confirmations".
	// Services that share a broker want a topic each.
	Topic string
	// PerSecond bounds how many unconfirmed messages a forwarder sends again in a second, so that an
	// outage does not end in a storm. Default 100.
	PerSecond float64
	// OnDead is called in the transaction that ends an unconfirmed message as dead, whose context it
	// gets: what it writes and publishes there is committed with it. On an error the message stays as it
	// was, and OnDead is called again later.
	OnDead func(ctx context.Context, r Record) error
	// OnLate is told of a confirmation that came when the message was dead already.
	OnLate func(ctx context.Context, r Record, c Confirmed)
}

const defaultConfirmTopic = "millrace.confirmations"

func (c Confirming) check() error {
	var errs []error
	if c.Topic != "" {
		if err := checkText("topic", c.Topic, 1, maxTopic); err != nil {
			errs = append(errs, fmt.Errorf("outbox: Config.Confirming.Topic: %w", err))
		}
	}
	if c.PerSecond < 0 {
		errs = append(errs, errors.New("outbox: Config.Confirming.PerSecond is negative"))
	}
	return errors.Join(errs...)
}

func (c Confirming) withDefaults() Confirming {
	if c.Topic == "" {
		c.Topic = defaultConfirmTopic
	}
	if c.PerSecond == 0 {
		c.PerSecond = 100
	}
	return c
}

// ConfirmTopic is the topic that Confirmations handles.
func (b *Box) ConfirmTopic() string { return b.cfg.Confirming.withDefaults().Topic }

// Confirmations is the handler for the confirmations of consumers:
//
//	router.AddConsumerHandler("confirmations", box.ConfirmTopic(), subscriber, box.Confirmations)
//
// A confirmation counts whatever the state of its message: one that overtakes the forwarder is found when
// the message has been sent, and one that comes when the message is dead is kept, and told to OnLate. One
// that cannot be read is logged and dropped. Confirmations may come twice, and in any order.
func (b *Box) Confirmations(msg *message.Message) error {
	c, err := confirmation.Parse(msg.Payload)
	if err != nil {
		b.log.WarnContext(msg.Context(), "a confirmation that is none was dropped", "message_id", msg.UUID, "error", err)
		return nil
	}
	if err := b.confirm(msg.Context(), c); err != nil {
		return fmt.Errorf("outbox: confirmation of %q: %w", c.ID, err)
	}
	return nil
}

// ConfirmationsPlugin adds Confirmations to a router, as the handler "millrace.confirmations".
func (b *Box) ConfirmationsPlugin(sub message.Subscriber) message.RouterPlugin {
	return func(r *message.Router) error {
		if sub == nil {
			return errors.New("outbox: ConfirmationsPlugin: no subscriber")
		}
		r.AddConsumerHandler("millrace.confirmations", b.ConfirmTopic(), sub, b.Confirmations)
		return nil
	}
}

// metadata are what a message tells middleware.Confirm.
func (p Policy) metadata(topic string) map[string]string {
	return map[string]string{
		meta.Confirm: topic,
		meta.MaxAge:  strconv.FormatInt(p.withDefaults().MaxAge.Milliseconds(), 10),
	}
}

// confirm stores a confirmation, and then looks what it means, in a transaction of its own: begun after
// this one has committed, it cannot miss a settle that looked for the confirmation too early.
func (b *Box) confirm(ctx context.Context, c confirmation.Confirmation) error {
	err := b.byHand(ctx, "confirm", func(h hand) error {
		_, err := h.run(ctx, insertConfirmation[h.kind], c.ID, c.Group, string(c.Outcome), c.Reason)
		return err
	})
	if err != nil {
		return err
	}
	_, err = b.judge(ctx, c.ID)
	if err == nil {
		err = b.late(ctx, c)
	}
	return err
}

// A group that said "done" is not heard when it says "failed" afterwards, for a copy; the other way
// round it is.
var insertConfirmation = map[txn.Dialect]string{
	txn.Postgres: `INSERT INTO millrace_confirmations (id, grp, outcome, error, at) VALUES ($1, $2, $3, $4, {now})
		ON CONFLICT (id, grp) DO UPDATE SET outcome = excluded.outcome, error = excluded.error, at = excluded.at
		WHERE millrace_confirmations.outcome <> 'done' OR excluded.outcome = 'done'`,
	txn.MySQL: `INSERT INTO millrace_confirmations (id, grp, outcome, error, at) VALUES ($1, $2, $3, $4, {now})
		ON DUPLICATE KEY UPDATE error = IF(outcome = 'done' AND VALUES(outcome) <> 'done', error, VALUES(error)),
			at = IF(outcome = 'done' AND VALUES(outcome) <> 'done', at, VALUES(at)),
			outcome = IF(outcome = 'done', outcome, VALUES(outcome))`,
	txn.SQLite: `INSERT INTO millrace_confirmations (id, grp, outcome, error, at) VALUES ($1, $2, $3, $4, {now})
		ON CONFLICT (id, grp) DO UPDATE SET outcome = excluded.outcome, error = excluded.error, at = excluded.at
		WHERE millrace_confirmations.outcome <> 'done' OR excluded.outcome = 'done'`,
}

// unconfirmed is a sent message that awaits confirmations.
type unconfirmed struct {
	seq         int64
	sentAt, age int64 // microseconds since 1970, and since then
	ref         Ref
	lane        int
	topic       string
	metadata    string
	plan        Plan
}

const unconfirmedColumns = `seq, pos, id, lane, topic, metadata, plan, {us sent_at}, {age sent_at}`

func scanUnconfirmed(row txn.Scanner) (u unconfirmed, err error) {
	var plan string
	if err := row.Scan(&u.seq, &u.ref.Pos, &u.ref.ID, &u.lane, &u.topic, &u.metadata, &plan, &u.sentAt, &u.age); err != nil {
		return u, err
	}
	if err := json.Unmarshal([]byte(plan), &u.plan); err != nil {
		return u, fmt.Errorf("outbox: the policy of sent message %d cannot be read", u.seq)
	}
	return u, nil
}

// attempts is how often it has been sent.
func (u unconfirmed) attempts() int { return u.plan.Sends + 1 }

// firstSent is when it was sent for the first time, in microseconds since 1970.
func (u unconfirmed) firstSent() int64 {
	if u.plan.FirstSent != 0 {
		return u.plan.FirstSent
	}
	return u.sentAt
}

// sinceFirst is the time since then, by the database's clock.
func (u unconfirmed) sinceFirst() time.Duration {
	return time.Duration(u.age+u.sentAt-u.firstSent()) * time.Microsecond
}

// judge looks whether a sent message is done, or has failed: it locks the message, and only then reads
// its confirmations, in a new statement. Of two that judge at once, one sees what the other did.
func (b *Box) judge(ctx context.Context, id string) (ended bool, err error) {
	err = b.within(ctx, "judge", func(ctx context.Context, h hand) error {
		ended = false
		all, err := h.unconfirmed(ctx, `id = $1`+h.wait(), id)
		if err != nil || len(all) == 0 {
			return err
		}
		words, err := h.words(ctx, []string{id})
		if err != nil {
			return err
		}
		for _, u := range all {
			over, err := h.conclude(ctx, u, words[id])
			ended = ended || over
			if err != nil {
				return err
			}
		}
		return nil
	})
	return ended, err
}

// wait locks what is found, and waits for who has it locked.
func (h hand) wait() string {
	if h.kind == txn.SQLite {
		return ""
	}
	return " FOR UPDATE"
}

func (h hand) unconfirmed(ctx context.Context, where string, args ...any) (all []unconfirmed, err error) {
	err = h.ask(ctx, `SELECT `+unconfirmedColumns+` FROM millrace_sent WHERE state = 'sent' AND keep = 2 AND `+where, args,
		func(row txn.Scanner) error {
			u, err := scanUnconfirmed(row)
			all = append(all, u)
			return err
		})
	return all, err
}

// word is what a group said.
type word struct {
	group, outcome, reason string
}

// words are the confirmations of messages.
func (h hand) words(ctx context.Context, ids []string) (map[string][]word, error) {
	words := make(map[string][]word, len(ids))
	err := h.ask(ctx, `SELECT id, grp, outcome, error FROM millrace_confirmations WHERE id IN (`+params(len(ids))+`)`, anyOf(ids),
		func(row txn.Scanner) error {
			var id string
			var w word
			err := row.Scan(&id, &w.group, &w.outcome, &w.reason)
			words[id] = append(words[id], w)
			return err
		})
	return words, err
}

// missing are the groups that have not said "done".
func (u unconfirmed) missing(words []word) (groups []string) {
	for _, g := range u.plan.Groups {
		if !slices.ContainsFunc(words, func(w word) bool { return w.group == g && w.outcome == string(confirmation.Done) }) {
			groups = append(groups, g)
		}
	}
	return groups
}

// conclude ends a message of which all groups said "done", or one "failed".
func (h hand) conclude(ctx context.Context, u unconfirmed, words []word) (bool, error) {
	if len(u.missing(words)) == 0 {
		_, err := h.run(ctx, `UPDATE millrace_sent SET state = 'done', done_at = {now}, due_at = NULL, expires_at = {after $1} WHERE seq = $2`,
			micros(u.plan.Retention), u.seq)
		return true, err
	}
	for _, w := range words {
		if w.outcome == string(confirmation.Failed) && slices.Contains(u.plan.Groups, w.group) {
			text := "group " + strconv.Quote(w.group) + " gave it up"
			if w.reason != "" {
				text += ": " + w.reason
			}
			return true, h.bury(ctx, u, ReasonFailed, text)
		}
	}
	return false, nil
}

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
		FROM millrace_sent WHERE seq = $4`, reason, clip(text, 500), u.attempts(), u.seq)
	if err == nil {
		_, err = h.run(ctx, `DELETE FROM millrace_sent WHERE seq = $1`, u.seq)
	}
	if err == nil {
		_, err = h.run(ctx, `INSERT INTO millrace_history (id, at, event, attempt, reason, error) VALUES ($1, {now}, $2, $3, $4, $5)`,
			u.ref.ID, eventParked, u.attempts(), reason, clip(text, 500))
	}
	if err != nil {
		return err
	}
	h.box.log.ErrorContext(ctx, "a sent message is dead", "message_id", u.ref.ID, "topic", u.topic, "reason", reason, "attempts", u.attempts())
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

// late records a confirmation of a message that is dead.
func (b *Box) late(ctx context.Context, c confirmation.Confirmation) error {
	if c.Outcome != confirmation.Done {
		return nil
	}
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
		b.cfg.Confirming.OnLate(ctx, r, Confirmed{Group: c.Group, Outcome: string(c.Outcome), Error: c.Reason, At: c.At})
	}
	return nil
}

const eventLate = "confirmed late"

// within is byHand in a transaction that ctx carries, for what calls the user's functions.
func (b *Box) within(ctx context.Context, what string, fn func(ctx context.Context, h hand) error) error {
	pool, ok := b.pool.(txn.Beginner)
	if !ok {
		return fmt.Errorf("outbox: %s: %w", what, txn.ErrUnsupported)
	}
	if _, err := b.store.dialect(ctx); err != nil {
		return err
	}
	kind, err := b.pool.Dialect(ctx)
	if err != nil {
		return explain(what, err)
	}
	o := txn.Options{Propagation: txn.RequiresNew}
	if kind != txn.SQLite {
		o.Isolation = sql.LevelReadCommitted
	}
	return txn.Run(ctx, pool, o, func(ctx context.Context, tx *txn.Tx) error { return fn(ctx, hand{tx, b, kind}) })
}

// anew lets messages that wait again begin anew: what was said against them is forgotten, and so is how often
// they were sent. Who has confirmed need not do so again.
func (h hand) anew(ctx context.Context, ids []string) error {
	if _, err := h.run(ctx, `DELETE FROM millrace_confirmations WHERE outcome <> 'done' AND id IN (`+params(len(ids))+`)`, anyOf(ids)...); err != nil {
		return err
	}
	type fresh struct {
		plan     string
		deadline time.Duration
	}
	plans := map[int64]fresh{}
	err := h.ask(ctx, `SELECT pos, plan FROM millrace_outbox WHERE keep = 2 AND id IN (`+params(len(ids))+`)`, anyOf(ids), func(row txn.Scanner) error {
		var pos int64
		var text string
		if err := row.Scan(&pos, &text); err != nil {
			return err
		}
		var plan Plan
		if err := json.Unmarshal([]byte(text), &plan); err != nil || plan.Sends == 0 && plan.FirstSent == 0 {
			return nil // one that cannot be read is for the operator to see later
		}
		plan.Sends, plan.FirstSent = 0, 0
		out, err := json.Marshal(plan)
		plans[pos] = fresh{string(out), plan.Deadline}
		return err
	})
	for pos, f := range plans {
		if err == nil {
			_, err = h.run(ctx, `UPDATE millrace_outbox SET plan = $1, keep_us = $2 WHERE pos = $3`, f.plan, micros(f.deadline), pos)
		}
	}
	return err
}
