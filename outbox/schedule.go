package outbox

import (
	"context"
	"errors"
	"fmt"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace/internal/txn"
)

var (
	// ErrNoSchedule means that no message waits under a schedule name: there never was one, or it has been
	// sent, or cancelled, or set aside as dead.
	ErrNoSchedule = errors.New("outbox: no message waits under this schedule name")
	// ErrTooLate means that the message of a schedule name is being sent, and can be neither cancelled nor
	// replaced any more. The name is free for another one.
	ErrTooLate = errors.New("outbox: the message of this schedule name is being sent already")
	// ErrDuplicateSchedule means that a message waits under the schedule name already; see Replace. Where
	// the database found it, the whole transaction has failed.
	ErrDuplicateSchedule = errors.New("outbox: a message waits under this schedule name already")
)

// Cancel takes back the message that waits under a schedule name (WithSchedule), in the transaction in
// ctx: if that commits, the message is never sent; if not, it is as if Cancel had not been called. What
// the transaction has published so far is inserted before.
//
// It returns ErrNoSchedule if there is none, and ErrTooLate if the forwarder has begun to send it; neither
// fails the transaction. Until the transaction ends the message is not sent, even if it becomes due.
func (b *Box) Cancel(ctx context.Context, schedule string) error {
	tx, err := b.scheduling(ctx, schedule)
	if err != nil {
		return fmt.Errorf("outbox: cancel: %w", err)
	}
	id, err := b.unschedule(ctx, tx, schedule)
	if err != nil {
		return err
	}
	if err := b.note(ctx, tx, id, eventCancelled); err != nil {
		return explain("cancel", err)
	}
	return nil
}

// Replace cancels the message that waits under a schedule name and publishes another one under it, with a
// delay (WithDelay, WithDueAt), a key and a topic of its own. Errors are those of Cancel and Publish; after
// ErrNoSchedule and ErrTooLate nothing has been published.
func (b *Box) Replace(ctx context.Context, schedule, topic string, msg *message.Message) error {
	entries, err := b.encode(ctx, topic, msg)
	if err != nil {
		return err
	}
	tx, err := b.scheduling(ctx, schedule)
	if err != nil {
		return fmt.Errorf("outbox: replace: %w", err)
	}
	if _, err := b.unschedule(ctx, tx, schedule); err != nil {
		return err
	}
	entries[0].schedule = schedule
	return b.accept(ctx, entries)
}

// scheduling finds the transaction, and inserts what it has published so far: the name may be among it.
func (b *Box) scheduling(ctx context.Context, schedule string) (*txn.Tx, error) {
	if err := checkText("schedule name", schedule, 1, maxSchedule); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalidMessage, err)
	}
	tx, ok := txn.From(ctx, b.pool)
	if !ok {
		return nil, b.noTransaction()
	}
	if tx.ReadOnly() {
		return nil, txn.ErrReadOnly
	}
	return tx, tx.FlushNow(ctx)
}

// unschedule deletes the message of a name, which it locks first against being marked, and returns its id.
//
// The name is looked for with a lock: without one, a transaction at REPEATABLE READ would not see a
// message that was scheduled while it waited for the lock of its business row.
func (b *Box) unschedule(ctx context.Context, tx *txn.Tx, schedule string) (id string, err error) {
	lock := ` FOR UPDATE`
	if tx.Dialect() == txn.SQLite {
		lock = ``
	}
	id, err = b.text(ctx, tx, `SELECT id {from millrace_schedules PRIMARY} WHERE name = $1`+lock, schedule)
	if err != nil {
		return "", err
	}
	if id == "" {
		late, err := b.text(ctx, tx, `SELECT id FROM millrace_sending s WHERE name = $1
			AND EXISTS (SELECT 1 FROM millrace_outbox o WHERE o.id = s.id) LIMIT 1`, schedule)
		switch {
		case err != nil:
			return "", err
		case late != "":
			return "", ErrTooLate
		}
		return "", ErrNoSchedule
	}
	if _, err := tx.Exec(ctx, b.statement(tx, `{delete millrace_schedules PRIMARY} WHERE name = $1`), schedule); err != nil {
		return "", explain("cancel", err)
	}
	n, err := tx.Exec(ctx, b.statement(tx, `{delete millrace_outbox millrace_outbox_id} WHERE id = $1`), id)
	switch {
	case err != nil:
		return "", explain("cancel", err)
	case n == 0: // somebody deleted it by hand
		return "", ErrNoSchedule
	}
	return id, nil
}

// note writes a line of a message's history.
func (b *Box) note(ctx context.Context, tx *txn.Tx, id, event string) error {
	_, err := tx.Exec(ctx, b.statement(tx, `INSERT INTO millrace_history (id, at, event) VALUES ($1, {now}, $2)`), id, event)
	return err
}

// text asks for one text, "" if there is no row.
func (b *Box) text(ctx context.Context, tx *txn.Tx, common string, args ...any) (answer string, err error) {
	err = tx.Query(ctx, b.statement(tx, common), args, func(row txn.Scanner) error { return row.Scan(&answer) })
	return answer, explain("schedule", err)
}

// statement is one in the common form, for the database of a transaction.
func (b *Box) statement(tx *txn.Tx, common string) string {
	return translator(tx.Dialect())(rename(common, b.cfg.Prefix))
}
