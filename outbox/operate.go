package outbox

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/millrace-go/millrace/internal/txn"
)

// By is who does something to the outbox by hand, and why. Both are stored, and neither may be empty.
type By struct {
	Who string
	Why string
}

func (by By) check() error {
	if by.Who == "" || by.Why == "" {
		return errors.New("outbox: say who does this and why: By.Who, By.Why")
	}
	return nil
}

// Audit is one thing that somebody did by hand.
type Audit struct {
	Seq    int64
	At     time.Time
	By     By
	Action string // replay, discard, edit, pause, resume
	// Target is what it was done to, as JSON; a very long one is cut off.
	Target string
	// Affected is the number of messages, so far if it is not Finished.
	Affected int64
	Finished bool
}

// Audits lists what was done by hand, newest first: up to limit (at most 1000), and before the Seq of the
// last one of the page before, 0 for the first page.
func (b *Box) Audits(ctx context.Context, before int64, limit int) (all []Audit, err error) {
	if limit <= 0 || before < 0 {
		return nil, errors.New("outbox: audits: limit must be positive, before must not be negative")
	}
	c := &clause{}
	if before > 0 {
		c.add("seq < ?", before)
	}
	text := fmt.Sprintf("SELECT seq, {us at}, who, why, action, target, affected, finished FROM millrace_audit%s ORDER BY seq DESC LIMIT %d",
		c, min(limit, maxPage))
	err = b.store.once(ctx, "audits", text, c.args, func(row txn.Scanner) error {
		var a Audit
		var at int64
		err := row.Scan(&a.Seq, &at, &a.By.Who, &a.By.Why, &a.Action, &a.Target, &a.Affected, &a.Finished)
		a.At = unixMicro(&at)
		all = append(all, a)
		return err
	})
	return all, err
}

// hand is one transaction of what somebody does by hand.
type hand struct {
	txn.Querier
	box  *Box
	kind txn.Dialect
}

// byHand runs fn in a transaction.
func (b *Box) byHand(ctx context.Context, what string, fn func(h hand) error) error {
	return b.inHand(ctx, what, txn.Options{Isolation: sql.LevelReadCommitted}, fn)
}

// look runs fn in a transaction that writes nothing, and sees all tables as they were at one moment.
func (b *Box) look(ctx context.Context, what string, fn func(h hand) error) error {
	return b.inHand(ctx, what, txn.Options{Isolation: sql.LevelRepeatableRead, ReadOnly: true}, fn)
}

func (b *Box) inHand(ctx context.Context, what string, o txn.Options, fn func(h hand) error) error {
	kind, err := b.pool.Dialect(ctx)
	if err != nil {
		return explain(what, err)
	}
	if kind == txn.SQLite { // which is always serializable
		o.Isolation = sql.LevelDefault
	}
	if _, err := b.store.dialect(ctx); err != nil {
		return err
	}
	err = txn.Atomic(ctx, b.pool, o, func(q txn.Querier) error { return fn(hand{q, b, kind}) })
	for _, ours := range []error{ErrNotFound, ErrInvalidMessage, ErrDuplicateMessage, ErrDuplicateSchedule, errArchive} {
		if errors.Is(err, ours) {
			return err
		}
	}
	return b.store.wrap(what, err)
}

// run executes a statement in the common form.
func (h hand) run(ctx context.Context, common string, args ...any) (int64, error) {
	return h.Exec(ctx, translator(h.kind)(rename(common, h.box.cfg.Prefix)), args...)
}

// ask is a query in the common form.
func (h hand) ask(ctx context.Context, common string, args []any, row func(txn.Scanner) error) error {
	return h.Query(ctx, translator(h.kind)(rename(common, h.box.cfg.Prefix)), args, row)
}

// free is what makes a query lock what it finds, and pass over what others have locked.
func (h hand) free() string {
	if h.kind == txn.SQLite {
		return ""
	}
	return " FOR UPDATE SKIP LOCKED"
}

// audit begins the record of an action, and returns its number.
func (h hand) audit(ctx context.Context, by By, action string, target any, affected int64, finished bool) (seq int64, err error) {
	text, err := json.Marshal(target)
	if err != nil {
		return 0, err
	}
	if _, err := h.run(ctx, `INSERT INTO millrace_audit (at, who, why, action, target, affected, finished)
		VALUES ({now}, $1, $2, $3, $4, $5, `+truth(finished)+`)`,
		clip(by.Who, 200), clip(by.Why, 1000), action, clip(string(text), 60000), affected); err != nil {
		return 0, err
	}
	drawn := map[txn.Dialect]string{txn.Postgres: `SELECT lastval()`, txn.MySQL: `SELECT LAST_INSERT_ID()`, txn.SQLite: `SELECT last_insert_rowid()`}
	err = h.Query(ctx, drawn[h.kind], nil, func(row txn.Scanner) error { return row.Scan(&seq) })
	return seq, err
}

func truth(b bool) string {
	if b {
		return "TRUE"
	}
	return "FALSE"
}

// event writes lines of the history of messages.
func (h hand) event(ctx context.Context, ids []string, event, reason string, by By) error {
	if len(ids) == 0 {
		return nil
	}
	c := &clause{}
	text := ""
	for i, id := range ids {
		if i > 0 {
			text += ", "
		}
		c.add("(?, {now}, ?, ?, ?)", id, event, reason, clip(by.Who, 200))
		text += c.parts[i]
	}
	_, err := h.run(ctx, `INSERT INTO millrace_history (id, at, event, reason, who) VALUES `+text, c.args...)
	return err
}
