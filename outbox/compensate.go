package outbox

import (
	"context"
	"encoding/json"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/millrace-go/millrace/internal/meta"
	"github.com/millrace-go/millrace/internal/txn"
)

// compensation sends again what was not confirmed in time: the message moves back from the sent to the
// waiting ones, and goes the way of all messages. The holder of its lane does that. Should two hold
// themselves for it, the lock of the row lets one of them move it, and the other finds it gone.
type compensation struct {
	box *Box

	mu     sync.Mutex
	probes map[string]time.Time // when a group that is silent was last asked, by group and topic
	tokens float64
	filled time.Time
}

const (
	overdueBatch = 200             // messages in one transaction
	maxBackoff   = 5               // doublings of Policy.Deadline
	laterDue     = 5 * time.Second // for what cannot be sent again now
	overduePause = 100 * time.Millisecond
)

// allowance is how many may be sent again now.
func (c *compensation) allowance(now time.Time) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	rate := c.box.cfg.Confirming.withDefaults().PerSecond
	if c.filled.IsZero() {
		c.tokens = rate
	} else {
		c.tokens = min(max(rate, 1), c.tokens+rate*now.Sub(c.filled).Seconds())
	}
	c.filled = now
	return int(c.tokens)
}

func (c *compensation) spend(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tokens -= float64(n)
}

// mayProbe reports whether a silent group may be asked again, and notes that it is.
func (c *compensation) mayProbe(name string, every time.Duration, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if last, asked := c.probes[name]; asked && now.Sub(last) < every {
		return false
	}
	if c.probes == nil {
		c.probes = map[string]time.Time{}
	}
	c.probes[name] = now
	return true
}

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
			_, err = c.box.judge(ctx, id)
		}
	}
	if err != nil && ctx.Err() == nil {
		c.box.log.WarnContext(ctx, "confirmations not looked for", "error", err)
	}
}

// run works at a batch of overdue messages of some lanes. It reports how many wait again, and whether more
// may be overdue.
func (c *compensation) run(ctx context.Context, lanes []int) (ready int, more bool, err error) {
	now := time.Now()
	allowed := c.allowance(now)
	var woken uint64
	err = c.box.within(ctx, "compensate", func(ctx context.Context, h hand) error {
		ready, more, woken = 0, false, 0
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
		ready, woken, err = c.work(ctx, h, overdue, allowed, now)
		return err
	})
	if err != nil {
		return 0, false, err
	}
	c.spend(ready)
	c.box.wakes.signal(woken)
	return ready, more, nil
}

// work decides about overdue messages, which are locked.
func (c *compensation) work(ctx context.Context, h hand, overdue []unconfirmed, allowed int, now time.Time) (ready int, lanes uint64, err error) {
	ids := make([]string, len(overdue))
	for i, u := range overdue {
		ids[i] = u.ref.ID
	}
	words, err := h.words(ctx, ids)
	if err != nil {
		return 0, 0, err
	}
	heard, err := h.heard(ctx, overdue, words)
	if err != nil {
		return 0, 0, err
	}
	waiting, err := h.waitingAmong(ctx, ids)
	if err != nil {
		return 0, 0, err
	}
	later := map[time.Duration][]int64{}
	for _, u := range overdue {
		ended, err := h.conclude(ctx, u, words[u.ref.ID])
		if err != nil {
			return 0, 0, err
		}
		if ended {
			continue
		}
		missing := u.missing(words[u.ref.ID])
		silent, probe := c.silence(u, missing, heard, now)
		switch {
		case u.sinceFirst() > u.plan.MaxAge:
			err = h.bury(ctx, u, ReasonUnconfirmed, "not confirmed by "+strings.Join(missing, ", ")+" within "+u.plan.MaxAge.String())
		case silent && !probe:
			later[u.plan.Deadline] = append(later[u.plan.Deadline], u.seq)
		case !silent && u.attempts() >= u.plan.MaxAttempts:
			err = h.bury(ctx, u, ReasonUnconfirmed, "not confirmed by "+strings.Join(missing, ", ")+" after "+strconv.Itoa(u.attempts())+" attempts")
		case waiting[u.ref.ID] || ready >= allowed:
			later[laterDue] = append(later[laterDue], u.seq)
		default:
			err = h.sendAgain(ctx, u, !silent)
			ready++
			lanes |= 1 << u.lane
		}
		if err != nil {
			return 0, 0, err
		}
	}
	for after, seqs := range later {
		if _, err := h.run(ctx, `UPDATE millrace_sent SET due_at = {after $1} WHERE seq IN (`+list(seqs)+`)`, micros(after)); err != nil {
			return 0, 0, err
		}
	}
	return ready, lanes, nil
}

// silence reports whether one of the groups has not been heard of at all since the message was sent: it is
// taken to be down, and sending it everything again and again would only fill its queue. One message is
// sent as a probe now and then; it and the others keep their attempts.
func (c *compensation) silence(u unconfirmed, missing []string, heard map[string]int64, now time.Time) (silent, probe bool) {
	for _, g := range missing {
		if heard[g] >= u.sentAt {
			continue
		}
		silent = true
		if c.mayProbe(g+" "+u.topic, u.plan.Deadline, now) {
			probe = true
		}
	}
	return silent, probe
}

// heard is when each of the groups that are missing last confirmed anything, in microseconds since 1970.
func (h hand) heard(ctx context.Context, overdue []unconfirmed, words map[string][]word) (map[string]int64, error) {
	heard := map[string]int64{}
	for _, u := range overdue {
		for _, g := range u.missing(words[u.ref.ID]) {
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
	u.plan.FirstSent = u.firstSent()
	if count {
		u.plan.Sends++
	}
	plan, err := json.Marshal(u.plan)
	if err != nil {
		return err
	}
	metadata := u.metadata
	for name, value := range map[string]string{
		meta.FirstSent: strconv.FormatInt(u.plan.FirstSent/1000, 10),
		meta.Sending:   strconv.Itoa(u.attempts()),
	} {
		if metadata, err = withMetadata(metadata, name, value); err != nil {
			return err
		}
	}
	deadline := u.plan.Deadline << min(u.plan.Sends, maxBackoff)
	_, err = h.run(ctx, `INSERT INTO millrace_outbox (id, lane, topic, order_key, keep, keep_us, plan, size, metadata, payload, created_at)
		SELECT id, lane, topic, order_key, keep, `+strconv.FormatInt(micros(deadline), 10)+`, $1, size, $2, payload, {now}
		FROM millrace_sent WHERE seq = $3`, string(plan), metadata, u.seq)
	if err == nil {
		_, err = h.run(ctx, `DELETE FROM millrace_sent WHERE seq = $1`, u.seq)
	}
	return err
}
