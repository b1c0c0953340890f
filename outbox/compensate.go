package outbox

import (
	"context"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/millrace-go/millrace/internal/confirmation"
	"github.com/millrace-go/millrace/internal/txn"
)

// compensation sends again what was not confirmed in time: the message moves back from the sent to the
// waiting ones, and goes the way of all messages. The holder of its lane does that. Should two hold
// themselves for it, the lock of the row lets one of them move it, and the other finds it gone.
type compensation struct {
	box  *Box
	pace confirmation.Pace

	forged atomic.Uint64 // confirmations that nobody had signed
}

const (
	overdueBatch = 200 // messages in one transaction
	overduePause = 100 * time.Millisecond
)

// judge looks at messages that have just been sent: a confirmation may have come before that was stored. What
// fails is found when the confirmation is overdue.
func (c *compensation) judge(ctx context.Context, ids []string) {
	var early []string
	err := c.box.byHand(ctx, "judge", func(h hand) error {
		early = nil
		return h.ask(ctx, `SELECT DISTINCT s.id FROM millrace_sent s JOIN millrace_confirmations c ON c.id = s.id
			WHERE s.state = 'sent' AND s.id IN (`+params(len(ids))+`)`, anyOf(ids), func(row txn.Scanner) error {
			var id string
			err := row.Scan(&id)
			early = append(early, id)
			return err
		})
	})
	for _, id := range early {
		if err == nil {
			err = c.box.judge(ctx, id)
		}
	}
	if err != nil && ctx.Err() == nil {
		c.box.log.WarnContext(ctx, "confirmations not looked for", "error", err)
	}
}

// run works at a batch of overdue messages of some lanes. It reports how many wait again, and whether more
// may be overdue.
func (c *compensation) run(ctx context.Context, lanes []int) (ready int, more bool, err error) {
	round := c.pace.Begin(time.Now(), c.box.cfg.Confirming.withDefaults().PerSecond)
	var woken uint64
	err = c.box.within(ctx, "compensate", func(ctx context.Context, h hand) error {
		more, woken = false, 0
		if h.kind == txn.Postgres { // a process that is frozen here does not keep its rows from others
			if _, err := h.Exec(ctx, `SET LOCAL idle_in_transaction_session_timeout = '5s'`); err != nil {
				return err
			}
		}
		overdue, err := h.unconfirmed(ctx, `lane IN (`+list(lanes)+`) AND due_at <= {now} ORDER BY due_at LIMIT `+strconv.Itoa(overdueBatch)+h.free())
		if err != nil || len(overdue) == 0 {
			return err
		}
		more = len(overdue) == overdueBatch
		woken, err = c.work(ctx, h, overdue, round)
		return err
	})
	if err != nil {
		return 0, false, err
	}
	round.Spend()
	c.box.wakes.signal(woken)
	return round.Again(), more, nil
}

// work decides about overdue messages, which are locked.
func (c *compensation) work(ctx context.Context, h hand, overdue []unconfirmed, round *confirmation.Round) (lanes uint64, err error) {
	ids := make([]string, len(overdue))
	for i, u := range overdue {
		ids[i] = u.ref.ID
	}
	words, err := h.words(ctx, ids)
	if err != nil {
		return 0, err
	}
	heard, err := h.heard(ctx, overdue, words)
	if err != nil {
		return 0, err
	}
	waiting, err := h.waitingAmong(ctx, ids)
	if err != nil {
		return 0, err
	}
	later := map[time.Duration][]int64{}
	for _, u := range overdue {
		over, err := h.conclude(ctx, u, words[u.ref.ID])
		if err != nil {
			return 0, err
		}
		if over {
			continue
		}
		awaited := u.awaited()
		switch d := round.Decide(awaited, awaited.Missing(words[u.ref.ID]), heard, waiting[u.ref.ID]); {
		case d.Dead != "":
			err = h.bury(ctx, u, ReasonUnconfirmed, d.Dead)
		case d.Again:
			waiting[u.ref.ID] = true
			lanes |= 1 << u.lane
			err = h.sendAgain(ctx, u, d.Counts)
		default:
			later[d.Later] = append(later[d.Later], u.seq)
		}
		if err != nil {
			return 0, err
		}
	}
	for after, seqs := range later {
		if _, err := h.run(ctx, `{update millrace_sent PRIMARY} SET due_at = {after $1} WHERE seq IN (`+list(seqs)+`)`, micros(after)); err != nil {
			return 0, err
		}
	}
	return lanes, nil
}

// heard is when each of the groups that are missing last confirmed anything, in microseconds since 1970.
func (h hand) heard(ctx context.Context, overdue []unconfirmed, words map[string][]confirmation.Word) (map[string]int64, error) {
	heard := map[string]int64{}
	for _, u := range overdue {
		for _, g := range u.awaited().Missing(words[u.ref.ID]) {
			if _, asked := heard[g]; asked {
				continue
			}
			heard[g] = 0
			err := h.ask(ctx, `SELECT {us at} FROM millrace_confirmations WHERE grp = $1 ORDER BY at DESC LIMIT 1`, []any{g},
				func(row txn.Scanner) error {
					var at int64
					err := row.Scan(&at)
					heard[g] = at
					return err
				})
			if err != nil {
				return nil, err
			}
		}
	}
	return heard, nil
}

// waitingAmong are the ids under which a message waits. It may be another one: an id is unique only while it
// waits.
func (h hand) waitingAmong(ctx context.Context, ids []string) (map[string]bool, error) {
	waiting := map[string]bool{}
	err := h.ask(ctx, `SELECT id FROM millrace_outbox WHERE id IN (`+params(len(ids))+`)`, anyOf(ids), func(row txn.Scanner) error {
		var id string
		err := row.Scan(&id)
		waiting[id] = true
		return err
	})
	return waiting, err
}

// sendAgain puts a message back among the waiting ones, with its id, and with what tells a consumer that it
// is a copy.
func (h hand) sendAgain(ctx context.Context, u unconfirmed, count bool) error {
	u.plan.Sendings = u.plan.Again(u.sentAt, count)
	plan, metadata, err := u.plan.stamped(u.metadata)
	if err != nil {
		return err
	}
	_, err = h.run(ctx, `INSERT INTO millrace_outbox (id, lane, topic, order_key, keep, keep_us, plan, size, metadata, payload, created_at)
		SELECT id, lane, topic, order_key, keep, `+strconv.FormatInt(micros(u.plan.overdue()), 10)+`, $1, size, $2, payload, {now}
		FROM millrace_sent WHERE seq = $3`, plan, metadata, u.seq)
	if err == nil {
		_, err = h.run(ctx, `DELETE FROM millrace_sent WHERE seq = $1`, u.seq)
	}
	return err
}
