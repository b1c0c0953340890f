package outbox

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/millrace-go/millrace/internal/confirmation"
	"github.com/millrace-go/millrace/internal/txn"
)

// confirm stores a confirmation, and then looks what it means, in a transaction of its own: begun after the
// confirmation has been committed, it cannot miss a settle that looked for it too early.
func (b *Box) confirm(ctx context.Context, c confirmation.Confirmation) error {
	kind, err := b.pool.Dialect(ctx)
	if err != nil {
		return explain("confirm", err)
	}
	w := c.Word()
	if _, err := b.store.exec(ctx, "confirm", insertConfirmation[kind], c.ID, w.Group, string(w.Outcome), w.Sending, w.Reason); err != nil {
		return err
	}
	if err := b.judge(ctx, c.ID); err != nil {
		return err
	}
	return b.late(ctx, c)
}

// The word of a group takes the place of what it said before as Word.Replaces has it.
var insertConfirmation = map[txn.Dialect]string{
	txn.Postgres: insertWord + onConflict,
	txn.MySQL: insertWord + ` ON DUPLICATE KEY UPDATE error = IF(` + staysMySQL + `, error, VALUES(error)), at = IF(` + staysMySQL + `, at, VALUES(at)),
		sending = IF(` + staysMySQL + `, sending, VALUES(sending)), outcome = IF(outcome = 'done', outcome, VALUES(outcome))`,
	txn.SQLite: insertWord + onConflict,
}

const (
	insertWord = `INSERT INTO millrace_confirmations (id, grp, outcome, sending, error, at) VALUES ($1, $2, $3, $4, $5, {now})`
	onConflict = ` ON CONFLICT (id, grp) DO UPDATE SET outcome = excluded.outcome, sending = excluded.sending, error = excluded.error, at = excluded.at
		WHERE excluded.outcome = 'done' OR millrace_confirmations.outcome <> 'done' AND excluded.sending >= millrace_confirmations.sending`
	// MySQL assigns from left to right: what this reads is assigned last.
	staysMySQL = `VALUES(outcome) <> 'done' AND (outcome = 'done' OR VALUES(sending) < sending)`
)

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

// awaited is what there is to be decided about it.
func (u unconfirmed) awaited() confirmation.Awaited {
	return u.plan.awaited(u.topic, u.sentAt, time.Duration(u.age)*time.Microsecond)
}

// judge looks whether a sent message is done, or has failed: it locks the message, and only then reads
// its confirmations, in a new statement. Of two that judge at once, one sees what the other did.
func (b *Box) judge(ctx context.Context, id string) error {
	return b.within(ctx, "judge", func(ctx context.Context, h hand) error {
		all, err := h.unconfirmed(ctx, `id = $1`+h.wait(), id)
		if err != nil || len(all) == 0 {
			return err
		}
		words, err := h.words(ctx, []string{id})
		if err != nil {
			return err
		}
		for _, u := range all {
			if _, err := h.conclude(ctx, u, words[id]); err != nil {
				return err
			}
		}
		return nil
	})
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

// words are the confirmations of messages.
func (h hand) words(ctx context.Context, ids []string) (map[string][]confirmation.Word, error) {
	words := make(map[string][]confirmation.Word, len(ids))
	err := h.ask(ctx, `SELECT id, grp, outcome, error, sending FROM millrace_confirmations WHERE id IN (`+params(len(ids))+`)`, anyOf(ids),
		func(row txn.Scanner) error {
			var id string
			var w confirmation.Word
			err := row.Scan(&id, &w.Group, &w.Outcome, &w.Reason, &w.Sending)
			words[id] = append(words[id], w)
			return err
		})
	return words, err
}

// conclude ends a message about which its groups have said enough.
func (h hand) conclude(ctx context.Context, u unconfirmed, words []confirmation.Word) (over bool, err error) {
	switch verdict, why := u.awaited().Judge(words); verdict {
	case confirmation.Done:
		_, err := h.run(ctx, `UPDATE millrace_sent SET state = 'done', done_at = {now}, due_at = NULL, expires_at = {after $1} WHERE seq = $2`,
			micros(u.plan.Retention), u.seq)
		return true, err
	case confirmation.Failed:
		return true, h.bury(ctx, u, ReasonFailed, why)
	}
	return false, nil
}
