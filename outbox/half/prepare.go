package half

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/internal/fault"
	"github.com/millrace-go/millrace/internal/txn"
)

// Prepare stores a message where nobody sees it. It is let go by Commit, dropped by Rollback, and
// checked back by the topic's checker if neither comes. The message's id names it from then on.
//
// What the outbox's propagators know of ctx, a trace for example, is taken now: Commit, and whoever checks back, has
// another context.
//
// It is safe to call again with the same message after an error. Inside of a transaction of the outbox's
// database it is refused with millrace.ErrTransactionOpen: publish to the outbox there.
func (m *Messages) Prepare(ctx context.Context, topic string, msg *message.Message) error {
	if m.checker(topic) == nil {
		return fmt.Errorf("%w (topic %q)", ErrNoChecker, topic)
	}
	_, err := m.prepare(ctx, topic, msg, "", "")
	return err
}

// PrepareWitnessed is Prepare for a local transaction that writes a witness into db, one of
// Config.Witnesses: call Witness of what it returns first in that transaction. InTx does all of this; this is for
// transactions that somebody else begins (millrace.Bind).
func (m *Messages) PrepareWitnessed(ctx context.Context, db millrace.DB, topic string, msg *message.Message) (*Witness, error) {
	name, err := m.witnessName(db)
	if err != nil {
		return nil, err
	}
	limit, err := m.prepare(ctx, topic, msg, name, "")
	if err != nil {
		return nil, err
	}
	return &Witness{id: msg.UUID, pool: db.TxnPool(), limit: limit}, nil
}

// Witness is what a local transaction has to leave behind.
type Witness struct {
	id    string
	pool  txn.Pool
	limit int64
}

// Write leaves the witness in the transaction that ctx carries. Call it before anything else there: the
// transaction fails at once if it comes too late (ErrTooLate) or was given up (ErrRolledBack), and may
// not go on without its witness.
func (w *Witness) Write(ctx context.Context) error {
	tx, ok := txn.From(ctx, w.pool)
	if !ok {
		return fmt.Errorf("half: witness: %w of the database that was named: use the context of its transaction", millrace.ErrNoTransaction)
	}
	if err := witness(ctx, tx, w.id, w.limit); err != nil {
		tx.Spoil(err) // also if the caller ignores it
		return err
	}
	return nil
}

func (m *Messages) witnessName(db millrace.DB) (string, error) {
	if db != nil {
		for name, w := range m.cfg.Witnesses {
			if w.TxnPool().Identity() == db.TxnPool().Identity() {
				return name, nil
			}
		}
	}
	return "", fmt.Errorf("%w: the database is none of Config.Witnesses", ErrNoChecker)
}

func (m *Messages) checker(topic string) Checker {
	if c := m.cfg.Checkers[topic]; c != nil {
		return c
	}
	return m.cfg.Checkers[""]
}

// prepare stores the message and returns, in microseconds since 1970, until when its local transaction
// may commit.
func (m *Messages) prepare(ctx context.Context, topic string, msg *message.Message, witness, callback string) (int64, error) {
	if _, open := txn.From(ctx, m.pool); open {
		return 0, fmt.Errorf("half: prepare: %w: the data is in the outbox's own database, publish to the outbox", millrace.ErrTransactionOpen)
	}
	captured, err := m.box.Capture(ctx, topic, msg)
	if err != nil {
		return 0, fmt.Errorf("half: prepare: %w", err)
	}
	dialect, err := m.pool.Dialect(ctx)
	if err != nil {
		return 0, fmt.Errorf("half: prepare: %w", err)
	}
	if msg.Metadata == nil {
		msg.Metadata = message.Metadata{}
	}
	given, err := json.Marshal(msg.Metadata)
	if err != nil {
		return 0, fmt.Errorf("half: prepare: %w", err)
	}
	metadata, err := json.Marshal(captured.Metadata)
	if err != nil {
		return 0, fmt.Errorf("half: prepare: %w", err)
	}
	digest := fingerprint(topic, string(given), msg.Payload) // of a second try, in another trace, it is the same
	payload := append(make([]byte, 0, len(msg.Payload)), msg.Payload...)
	_, err = exec(ctx, m.pool, dialect, insertHalf[dialect], msg.UUID, topic, witness, callback, micros(m.cfg.MaxAge),
		digest, string(metadata), payload, micros(m.cfg.FirstCheck))
	if err != nil && !duplicate(err) {
		return 0, fmt.Errorf("half: prepare: %w", err)
	}
	h, err := m.load(ctx, m.pool, dialect, msg.UUID, "")
	switch {
	case err != nil:
		return 0, fmt.Errorf("half: prepare: %w", err)
	case h.digest != digest || h.Topic != topic || h.Witness != witness || h.callback != callback:
		return 0, fmt.Errorf("%w: %s", ErrConflict, msg.UUID)
	case h.State == Committed:
		return 0, fmt.Errorf("half: prepare: %w", ErrCommitted)
	case h.State == Ended:
		return 0, fmt.Errorf("half: prepare: %w", ErrRolledBack)
	}
	fault.Point("half.after_prepare")
	return h.PreparedAt.UnixMicro() + h.maxAge, nil
}

var insertHalf = map[txn.Dialect]string{
	txn.Postgres: insertInto + ` ON CONFLICT (id) DO NOTHING`,
	txn.MySQL:    insertInto,
	txn.SQLite:   insertInto + ` ON CONFLICT (id) DO NOTHING`,
}

const insertInto = `INSERT INTO millrace_half (id, topic, state, witness, callback, max_age, digest, metadata, payload, prepared_at, next_check)
	VALUES ($1, $2, 'prepared', $3, $4, $5, $6, $7, $8, {now}, {after $9})`

// fingerprint tells a second Prepare of a message from one of another message with its id.
func fingerprint(topic, metadata string, payload []byte) string {
	h := sha256.New()
	_, _ = fmt.Fprintf(h, "%d %d ", len(topic), len(metadata))
	_, _ = h.Write([]byte(topic + metadata))
	_, _ = h.Write(payload)
	return hex.EncodeToString(h.Sum(nil))
}
