package outbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/millrace-go/millrace/internal/confirmation"
	"github.com/millrace-go/millrace/internal/txn"
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
		return u, fmt.Errorf("%w of sent message %d", errPolicy, u.seq)
	}
	return u, nil
}

var errPolicy = errors.New("outbox: cannot read the policy")

// awaited is what there is to be decided about it.
func (u unconfirmed) awaited() confirmation.Awaited {
	return u.plan.awaited(u.topic, u.sentAt, time.Duration(u.age)*time.Microsecond)
}

// judge looks whether a sent message is done, or has failed, in a transaction of its own: it locks the message, and only then reads
// its confirmations, in a new statement. Of two that judge at once, one sees what the other did.
func (b *Box) judge(ctx context.Context, id string) error {
	seqs, err := b.awaitingSeqs(ctx, []string{id})
	if err != nil || len(seqs) == 0 {
		return err
	}
	return b.within(ctx, "judge", func(ctx context.Context, h hand) error {
		all, damaged, err := h.lockAwaiting(ctx, seqs)
		if err == nil && len(damaged) > 0 {
			err = fmt.Errorf("%w of sent message %q", errPolicy, id)
		}
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
		return true, h.done(ctx, u.plan.Retention, []int64{u.seq})
	case confirmation.Failed:
		return true, h.bury(ctx, u, ReasonFailed, why)
	}
	return false, nil
}
