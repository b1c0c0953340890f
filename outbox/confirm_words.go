package outbox

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/millrace-go/millrace/internal/confirmation"
	"github.com/millrace-go/millrace/internal/txn"
)

// confirmGroup is how many confirmations are stored in one statement, and judged in one transaction: many, for the
// round trips, and so few that nobody waits long for their rows.
const confirmGroup = 64

// confirm stores confirmations, and then looks what they mean, in transactions of their own: begun after the
// confirmations have been committed, they cannot miss a settle that looked for them too early. On an error some of it
// may be done; all of it may be done again.
//
// All who do this take the rows that they lock in the same order: no two wait for each other.
func (b *Box) confirm(ctx context.Context, all []confirmation.Confirmation) error {
	var errs []error
	for group := range slices.Chunk(confirmation.Counting(all), confirmGroup) {
		if err := b.insertWords(ctx, group); err != nil {
			return errors.Join(append(errs, err)...)
		}
		alone, err := b.judgeAll(ctx, group)
		if err != nil {
			return errors.Join(append(errs, err)...)
		}
		for _, id := range alone { // what goes wrong with one, as in OnDead, keeps no other from its end
			errs = append(errs, b.judge(ctx, id))
		}
		if err := b.late(ctx, group); err != nil {
			return errors.Join(append(errs, err)...)
		}
	}
	return errors.Join(errs...)
}

// insertWords stores confirmations in one statement. The word of a group takes the place of what it said before as
// Word.Replaces has it.
func (b *Box) insertWords(ctx context.Context, group []confirmation.Confirmation) error {
	kind, err := b.pool.Dialect(ctx)
	if err != nil {
		return explain("confirm", err)
	}
	c := &clause{}
	for _, said := range group {
		w := said.Word()
		c.add("(?, ?, ?, ?, ?, {now})", said.ID, w.Group, string(w.Outcome), w.Sending, w.Reason)
	}
	_, err = b.store.exec(ctx, "confirm", `INSERT INTO millrace_confirmations (id, grp, outcome, sending, error, at) VALUES `+
		strings.Join(c.parts, ", ")+wordReplaces[kind], c.args...)
	return err
}

var wordReplaces = map[txn.Dialect]string{
	txn.Postgres: wordReplacesIf,
	txn.MySQL: ` ON DUPLICATE KEY UPDATE error = IF(` + staysMySQL + `, error, VALUES(error)), at = IF(` + staysMySQL + `, at, VALUES(at)),
		sending = IF(` + staysMySQL + `, sending, VALUES(sending)), outcome = IF(outcome = 'done', outcome, VALUES(outcome))`,
	txn.SQLite: wordReplacesIf,
}

const (
	wordReplacesIf = ` ON CONFLICT (id, grp) DO UPDATE SET outcome = excluded.outcome, sending = excluded.sending, error = excluded.error, at = excluded.at
		WHERE excluded.outcome = 'done' OR millrace_confirmations.outcome <> 'done' AND excluded.sending >= millrace_confirmations.sending`
	// MySQL assigns from left to right: what this reads is assigned last.
	staysMySQL = `VALUES(outcome) <> 'done' AND (outcome = 'done' OR VALUES(sending) < sending)`
)

// judgeAll is judge for many messages: it locks them, and only then reads their confirmations, in a new statement. It
// ends what is done, and returns the messages that are to be judged alone.
func (b *Box) judgeAll(ctx context.Context, group []confirmation.Confirmation) (alone []string, err error) {
	ids := make([]string, len(group))
	for i, c := range group {
		ids[i] = c.ID
	}
	seqs, err := b.awaitingSeqs(ctx, ids)
	if err != nil || len(seqs) == 0 {
		return nil, err
	}
	err = b.byHand(ctx, "judge", func(h hand) error {
		all, damaged, err := h.lockAwaiting(ctx, seqs)
		if err != nil {
			return err
		}
		if alone = damaged; len(all) == 0 {
			return nil
		}
		words, err := h.words(ctx, ids)
		if err != nil {
			return err
		}
		done := map[time.Duration][]int64{} // by retention, which most have in common
		for _, u := range all {
			switch verdict, _ := u.awaited().Judge(words[u.ref.ID]); verdict {
			case confirmation.Done:
				done[u.plan.Retention] = append(done[u.plan.Retention], u.seq)
			case confirmation.Failed:
				alone = append(alone, u.ref.ID)
			}
		}
		for retention, seqs := range done {
			if err := h.done(ctx, retention, seqs); err != nil {
				return err
			}
		}
		return nil
	})
	return alone, err
}

// awaitingSeqs are the sent messages with these ids that await confirmations. One that is not seen here will be judged by
// whoever stores that it was sent.
func (b *Box) awaitingSeqs(ctx context.Context, ids []string) (seqs []int64, err error) {
	err = b.store.query(ctx, "judge", `SELECT seq {from millrace_sent millrace_sent_id} WHERE state = 'sent' AND keep = 2 AND id IN (`+params(len(ids))+`)`,
		anyOf(ids), func(row txn.Scanner) error {
			var seq int64
			err := row.Scan(&seq)
			seqs = append(seqs, seq)
			return err
		})
	return seqs, err
}

// lockAwaiting locks those that still await confirmations, in the order of their numbers, and waits for who has them
// locked. It looks by these alone: MySQL locks the entry of an index, and then waits for the message, while who has that
// and deletes it waits for the entry. Damaged are the ids of those whose policy cannot be read.
func (h hand) lockAwaiting(ctx context.Context, seqs []int64) (all []unconfirmed, damaged []string, err error) {
	err = h.ask(ctx, `SELECT `+unconfirmedColumns+` {from millrace_sent PRIMARY} WHERE state = 'sent' AND keep = 2
			AND seq IN (`+params(len(seqs))+`) ORDER BY seq`+h.wait(), anyOf(seqs), func(row txn.Scanner) error {
		u, err := scanUnconfirmed(row)
		switch {
		case err == nil:
			all = append(all, u)
		case errors.Is(err, errPolicy):
			damaged = append(damaged, u.ref.ID)
			return nil
		}
		return err
	})
	return all, damaged, err
}

// done ends messages that all groups have confirmed.
func (h hand) done(ctx context.Context, retention time.Duration, seqs []int64) error {
	c := &clause{args: []any{micros(retention)}}
	c.add(`seq IN (?`+strings.Repeat(`, ?`, len(seqs)-1)+`)`, anyOf(seqs)...)
	_, err := h.run(ctx, `{update millrace_sent PRIMARY} SET state = 'done', done_at = {now}, due_at = NULL, expires_at = {after $1}`+c.String(), c.args...)
	return err
}
