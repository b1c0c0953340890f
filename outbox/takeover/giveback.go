package takeover

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/google/uuid"

	"github.com/millrace-go/millrace/internal/fault"
	"github.com/millrace-go/millrace/internal/meta"
	"github.com/millrace-go/millrace/internal/txn"
	"github.com/millrace-go/millrace/outbox"
)

// giveBackLease is renewed before each batch.
const giveBackLease = 2 * batchTimeout

// GiveBack is the inverse of Run: it moves what waits in the outbox into the stock table, in the order of its
// positions, where a stock forwarder finds it, and returns how much that was. What it leaves: delayed and
// scheduled messages, which the stock forwarder would send at once, and dead ones. Stop publishing into
// the Box before, or call it again after.
//
// It holds the lanes meanwhile, and returns ErrForwarder if a forwarder of millrace does; of one that crashed,
// until its lease has ended. An error leaves each message in one place or the other; what was moved before
// stays moved.
func (t *Takeover) GiveBack(ctx context.Context) (moved int, err error) {
	store := t.box.Store()
	replica := "takeover-" + uuid.NewString()
	if err := store.Join(ctx, replica, giveBackLease); err != nil {
		return 0, fmt.Errorf("takeover: give back: %w", err)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), batchTimeout)
		defer cancel()
		if e := store.Leave(ctx, replica); e != nil {
			err = errors.Join(err, fmt.Errorf("takeover: give back: the lanes are free when the lease has ended: %w", e))
		}
	}()
	if _, err := store.Sweep(ctx, replica); err != nil {
		return 0, fmt.Errorf("takeover: give back: %w", err)
	}
	grants, err := store.Claim(ctx, replica, outbox.Lanes)
	switch {
	case err != nil:
		return 0, fmt.Errorf("takeover: give back: %w", err)
	case len(grants) < outbox.Lanes:
		return 0, ErrForwarder
	}
	for beat := int64(0); ; beat++ {
		live, err := store.Renew(ctx, replica, beat, giveBackLease, nil)
		if err != nil {
			return moved, fmt.Errorf("takeover: give back: %w", err)
		}
		if !live {
			return moved, errors.New("takeover: give back: the lease was lost")
		}
		n, err := t.giveBack(ctx)
		moved += n
		if err != nil || n == 0 {
			return moved, err
		}
		fault.Point("takeover.given_back")
	}
}

// waiting are the messages that are given back: not those that wait for a time of their own.
const waiting = `SELECT pos, id, topic, order_key, metadata, payload FROM millrace_outbox
	WHERE schedule IS NULL AND (due_at IS NULL OR attempts > 0) ORDER BY pos LIMIT `

// giveBack moves one batch. It ends well within the lease that fences it: a later end would have found the
// rows locked or gone.
func (t *Takeover) giveBack(ctx context.Context) (n int, err error) {
	err = t.held(ctx, giveBackLease/2-time.Second, func(ctx context.Context, tx *txn.Tx, s *stock, _ position) error {
		var positions []string
		var envelopes []envelope
		query := t.own(waiting + strconv.Itoa(t.cfg.BatchSize) + ` FOR UPDATE SKIP LOCKED`)
		err := tx.Query(ctx, query, nil, func(row txn.Scanner) error {
			e, pos, err := scanWaiting(row)
			envelopes, positions = append(envelopes, e), append(positions, strconv.FormatInt(pos, 10))
			return err
		})
		if err != nil || len(envelopes) == 0 {
			return err
		}
		for _, e := range envelopes {
			payload, err := json.Marshal(e)
			if err == nil {
				_, err = tx.Exec(ctx, s.insert, watermill.NewUUID(), s.json(payload), s.json([]byte(`{}`)))
			}
			if err != nil {
				return err
			}
		}
		_, err = tx.Exec(ctx, t.own(`DELETE FROM millrace_outbox WHERE pos IN (`+strings.Join(positions, ",")+`)`))
		n = len(envelopes)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("takeover: give back: %w", err)
	}
	return n, nil
}

// scanWaiting reads a message. Its order key travels as metadata, and is found there when it comes back.
func scanWaiting(row txn.Scanner) (e envelope, pos int64, err error) {
	var key string
	var metadata []byte
	if err := row.Scan(&pos, &e.UUID, &e.DestinationTopic, &key, &metadata, &e.Payload); err != nil {
		return e, 0, err
	}
	if json.Unmarshal(metadata, &e.Metadata) != nil || e.Metadata == nil {
		return e, 0, fmt.Errorf("the metadata of row %d is not a JSON object of strings", pos)
	}
	if key != "" {
		e.Metadata[meta.Key] = key
	}
	return e, pos, nil
}

// own puts the outbox's prefix into a statement.
func (t *Takeover) own(query string) string {
	return strings.ReplaceAll(query, outbox.DefaultPrefix, t.cfg.Prefix)
}
