package takeover

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/millrace-go/millrace/internal/txn"
)

// Passed is a message of the stock table that lies at or below the stored offset.
type Passed struct {
	Offset    int64
	ID        string // of the message in the envelope
	Topic     string // that it was to go to
	CreatedAt string // as the database writes it
	// Err says why it cannot be sent.
	Err error
}

// Passed lists what the stock forwarder has left behind its offset, in the order of the offsets, from the one
// after the given one: at most limit, 1000 if that is 0.
//
// Most of it was forwarded: the stock table keeps all messages and does not say which. On MySQL some were
// not: those whose offset was drawn before that of a message which could be seen, and was forwarded, first.
// Consumers that remember ids can be asked which they know, or be sent all of them again by Send.
func (t *Takeover) Passed(ctx context.Context, after int64, limit int) ([]Passed, error) {
	if limit < 0 {
		return nil, errors.New("takeover: Passed: limit is negative")
	}
	if limit == 0 {
		limit = 1000
	}
	var passed []Passed
	err := t.held(ctx, batchTimeout, func(ctx context.Context, tx *txn.Tx, s *stock, at position) error {
		rows, err := read(ctx, tx, s.passed, s.position(at, after), limit)
		for _, r := range rows {
			p := Passed{Offset: r.offset, CreatedAt: r.created}
			if topic, msg, err := unwrap(r.payload); err != nil {
				p.Err = err
			} else {
				p.ID, p.Topic = msg.UUID, topic
			}
			passed = append(passed, p)
		}
		return err
	})
	return passed, err
}

// Send moves messages at or below the stored offset into the outbox, by their offsets, all or none. It returns
// how many: those that are not there any more, because they were moved before, do not count.
func (t *Takeover) Send(ctx context.Context, offsets ...int64) (sent int, err error) {
	if len(offsets) == 0 {
		return 0, nil
	}
	texts := make([]string, len(offsets))
	for i, offset := range offsets {
		texts[i] = strconv.FormatInt(offset, 10)
	}
	err = t.held(ctx, batchTimeout, func(ctx context.Context, tx *txn.Tx, s *stock, at position) error {
		query := strings.ReplaceAll(s.chosen, "{chosen}", strings.Join(texts, ","))
		rows, err := read(ctx, tx, query, s.position(at, -1), len(offsets))
		if err != nil {
			return err
		}
		sent = len(rows)
		return t.move(ctx, tx, s, rows, func(r row, err error) error {
			return fmt.Errorf("takeover: message %d: %w", r.offset, err)
		})
	})
	if err != nil {
		return 0, err
	}
	return sent, nil
}
