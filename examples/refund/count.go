package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
)

// books compare what was granted with what was executed, and with what became of the messages.
type books struct {
	asked, declined, granted, manual int
	executed, doubled                int
	amountGranted, amountExecuted    int64
	done, sentAgain                  int
	lostConfirmations                int
	givenUp                          int64
}

func count(ctx context.Context, r *refunds, p *payments) (b books, err error) {
	one := func(db *sql.DB, query string, dest ...any) {
		if err == nil {
			err = db.QueryRowContext(ctx, query).Scan(dest...)
		}
	}
	one(r.stage.refunds, `SELECT count(*) FROM refunds`, &b.asked)
	one(r.stage.refunds, `SELECT count(*) FROM refunds WHERE state = 'declined'`, &b.declined)
	one(r.stage.refunds, `SELECT count(*) FROM refunds WHERE state = 'manual'`, &b.manual)
	one(r.stage.refunds, `SELECT count(*), COALESCE(sum(amount), 0) FROM refunds WHERE state = 'granted'`, &b.granted, &b.amountGranted)
	one(p.stage.payments, `SELECT count(DISTINCT refund), count(*) - count(DISTINCT refund), COALESCE(sum(amount), 0) FROM executions`,
		&b.executed, &b.doubled, &b.amountExecuted)
	one(r.stage.refunds, `SELECT count(*) FROM millrace_sent WHERE state = 'done'`, &b.done)
	one(r.stage.refunds, `SELECT count(*) FROM millrace_sent WHERE metadata LIKE '%millrace_sending%'`, &b.sentAgain)
	p.lost.mu.Lock()
	b.lostConfirmations = p.lost.lost
	p.lost.mu.Unlock()
	b.givenUp = p.alarm.Load()
	return b, err
}

func (b books) print(out io.Writer) {
	euros := func(cents int64) string { return fmt.Sprintf("%d.%02d", cents/100, cents%100) }
	fmt.Fprintf(out, "\n  %-34s %6d\n", "asked for", b.asked)
	fmt.Fprintf(out, "  %-34s %6d   more than %s, for a person to decide\n", "declined", b.declined, euros(mostAutomatic))
	fmt.Fprintf(out, "  %-34s %6d   and %d requests were sent again\n", "confirmations lost", b.lostConfirmations, b.sentAgain)
	fmt.Fprintf(out, "  %-34s %6d   given up by the payment service, repaired and replayed\n", "closed accounts", b.givenUp)
	fmt.Fprintln(out, "  ─────────────────────────────────────────────────────────────")
	fmt.Fprintf(out, "  %-34s %6d   %s\n", "granted", b.granted, euros(b.amountGranted))
	fmt.Fprintf(out, "  %-34s %6d   %s\n", "executed", b.executed, euros(b.amountExecuted))
	fmt.Fprintf(out, "  %-34s %6d\n", "executed twice", b.doubled)
	fmt.Fprintf(out, "  %-34s %6d   messages in the state done\n", "confirmed", b.done)
	fmt.Fprintf(out, "  %-34s %6d\n", "still with the operator", b.manual)
}

// check says whether the books balance.
func (b books) check() error {
	if b.granted != b.executed || b.amountGranted != b.amountExecuted || b.doubled != 0 || b.done != b.granted || b.manual != 0 {
		return errors.New("the books do not balance")
	}
	return nil
}
