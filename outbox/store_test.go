package outbox_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/outbox"
	"github.com/millrace-go/millrace/outbox/outboxtest"
)

func TestStoresKeepTheRules(t *testing.T) {
	for _, b := range backends {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			common := open(t, b, outbox.Config{})
			outboxtest.Run(t, func(t *testing.T) outboxtest.Harness {
				own := *common
				own.T = t
				own.empty()
				return own.harness()
			})
		})
	}
}

// empty makes the outbox as it was when it was new.
func (b *bench) empty() {
	b.Helper()
	for _, table := range []string{"outbox", "forwarders", "stops", "dead", "schedules", "sending", "pauses", "sent", "history", "confirmations", "audit"} {
		b.exec(`DELETE FROM millrace_` + table)
	}
	b.exec(`UPDATE millrace_lanes SET owner = NULL, epoch = 0, crashes = 0`)
}

// harness puts rows into the table by hand, as somebody else's writer may.
func (b *bench) harness() outboxtest.Harness {
	h := outboxtest.Harness{
		Store:   b.box.Store(),
		Insert:  b.insert,
		Waiting: b.waiting,
		Dead:    b.dead,
		Sent:    b.sent,
		Evict:   func(replica string) { b.exec(`DELETE FROM millrace_forwarders WHERE id = '` + replica + `'`) },
		Remove:  func(pos int64) { b.exec(fmt.Sprint(`DELETE FROM millrace_outbox WHERE pos = `, pos)) },
	}
	h.Pause = func(kind outbox.PauseKind, name string) {
		b.exec(b.q(`INSERT INTO millrace_pauses (kind, name, who, why, since) VALUES ($1, $2, '', '', `+b.in(0)+`)`), string(kind), name)
	}
	h.Resume = func(kind outbox.PauseKind, name string) {
		b.exec(b.q(`DELETE FROM millrace_pauses WHERE kind = $1 AND name = $2`), string(kind), name)
	}
	h.Cancel = func(schedule string) error {
		return b.inTx(b.Context(), func(ctx context.Context) error { return b.box.Cancel(ctx, schedule) })
	}
	h.Confirm = func(msg *message.Message) error { return b.box.Confirmations(msg) }
	h.Replay = func(id string) bool {
		r, err := b.box.Replay(b.Context(), outbox.By{Who: "w", Why: "y"}, outbox.Filter{IDs: []string{id}}, outbox.Bulk{})
		require.NoError(b, err)
		return r.Done == 1
	}
	if b.driver != "sqlite" {
		h.Lock = b.lock
	}
	return h
}

// q rewrites the parameters of a PostgreSQL statement for this database.
func (b *bench) q(query string) string {
	if b.driver == "pgx" || b.driver == "postgres" {
		return query
	}
	for i := 20; i > 0; i-- {
		query = strings.ReplaceAll(query, fmt.Sprint("$", i), "?")
	}
	return query
}

func (b *bench) insert(entries ...outboxtest.Entry) (positions []int64) {
	b.Helper()
	tx, err := b.raw.BeginTx(b.Context(), nil)
	require.NoError(b, err)
	defer tx.Rollback()
	for _, e := range entries {
		metadata, err := json.Marshal(e.Meta)
		require.NoError(b, err)
		if e.Meta == nil {
			metadata = []byte("{}")
		}
		if e.Err != nil {
			metadata = []byte("no json")
		}
		lane := e.Lane
		if e.Key != "" {
			lane = outbox.Lane(e.Key)
		}
		ready, due := "1 = 1", "NULL"
		if e.Delay > 0 {
			ready, due = "1 = 0", b.in(e.Delay.Microseconds())
		}
		plan, kept := sql.NullString{}, time.Hour
		if len(e.Plan.Groups) > 0 {
			text, err := json.Marshal(e.Plan)
			require.NoError(b, err)
			plan, kept = sql.NullString{String: string(text), Valid: true}, e.Plan.Deadline
		}
		_, err = tx.ExecContext(b.Context(), b.q(`INSERT INTO millrace_outbox (id, lane, topic, order_key, size, metadata, payload, created_at, ready, due_at, schedule, keep, keep_us, plan)
			VALUES ($1, $2, $3, $4, $5, $6, $7, `+b.in(0)+`, `+ready+`, `+due+`, $8, $9, $10, $11)`),
			e.ID, lane, e.Topic, e.Key, len(e.Body)+len(metadata), string(metadata), append([]byte{}, e.Body...),
			sql.NullString{String: e.Schedule, Valid: e.Schedule != ""}, int(e.After), kept.Microseconds(), plan)
		require.NoError(b, err)
		if e.Schedule != "" {
			_, err = tx.ExecContext(b.Context(), b.q(`INSERT INTO millrace_schedules (name, id) VALUES ($1, $2)`), e.Schedule, e.ID)
			require.NoError(b, err)
		}
		var pos int64
		require.NoError(b, tx.QueryRowContext(b.Context(), b.q(`SELECT pos FROM millrace_outbox WHERE id = $1`), e.ID).Scan(&pos))
		positions = append(positions, pos)
	}
	require.NoError(b, tx.Commit())
	return positions
}

// in is a time in so many microseconds, in the database's words.
func (b *bench) in(micros int64) string {
	switch b.driver {
	case "mysql":
		return fmt.Sprintf(`UTC_TIMESTAMP(6) + INTERVAL %d MICROSECOND`, micros)
	case "sqlite":
		return fmt.Sprintf(`CAST(unixepoch('subsec') * 1000000 AS INTEGER) + %d`, micros)
	}
	return fmt.Sprintf(`clock_timestamp() + %d * interval '1 microsecond'`, micros)
}

func (b *bench) waiting() (rows []outbox.Row) {
	b.Helper()
	found, err := b.raw.QueryContext(b.Context(), `SELECT pos, id, lane, topic, order_key, attempts FROM millrace_outbox ORDER BY pos`)
	require.NoError(b, err)
	defer found.Close()
	for found.Next() {
		var r outbox.Row
		require.NoError(b, found.Scan(&r.Pos, &r.ID, &r.Lane, &r.Topic, &r.Key, &r.Attempts))
		rows = append(rows, r)
	}
	require.NoError(b, found.Err())
	return rows
}

func (b *bench) dead() (all []outboxtest.Dead) {
	b.Helper()
	found, err := b.raw.QueryContext(b.Context(), `SELECT pos, id, lane, topic, order_key, attempts, metadata, payload,
		destination, reason, error FROM millrace_dead ORDER BY seq`)
	require.NoError(b, err)
	defer found.Close()
	for found.Next() {
		var d outboxtest.Dead
		var metadata []byte
		require.NoError(b, found.Scan(&d.Pos, &d.ID, &d.Lane, &d.Topic, &d.Key, &d.Attempts, &metadata, &d.Payload,
			&d.Why.Destination, &d.Why.Reason, &d.Why.Error))
		require.NoError(b, json.Unmarshal(metadata, &d.Metadata))
		all = append(all, d)
	}
	require.NoError(b, found.Err())
	return all
}

func (b *bench) sent() (all []outboxtest.Sent) {
	b.Helper()
	until := func(column string) string {
		switch b.driver {
		case "mysql":
			return `COALESCE(TIMESTAMPDIFF(MICROSECOND, UTC_TIMESTAMP(6), ` + column + `), 0)`
		case "sqlite":
			return `COALESCE(` + column + ` - CAST(unixepoch('subsec') * 1000000 AS INTEGER), 0)`
		}
		return `coalesce((extract(epoch FROM ` + column + ` - clock_timestamp()) * 1000000)::bigint, 0)`
	}
	found, err := b.raw.QueryContext(b.Context(), `SELECT pos, id, lane, topic, order_key, keep, state, metadata, payload, `+
		until("due_at")+`, `+until("expires_at")+` FROM millrace_sent ORDER BY seq`)
	require.NoError(b, err)
	defer found.Close()
	for found.Next() {
		var s outboxtest.Sent
		var metadata []byte
		var due, expires int64
		require.NoError(b, found.Scan(&s.Pos, &s.ID, &s.Lane, &s.Topic, &s.Key, &s.After, &s.State, &metadata, &s.Payload, &due, &expires))
		require.NoError(b, json.Unmarshal(metadata, &s.Metadata))
		s.Due, s.Expires = time.Duration(due)*time.Microsecond, time.Duration(expires)*time.Microsecond
		all = append(all, s)
	}
	require.NoError(b, found.Err())
	return all
}

func (b *bench) lock(pos int64) (unlock func()) {
	b.Helper()
	tx, err := b.raw.BeginTx(b.Context(), &sql.TxOptions{})
	require.NoError(b, err)
	var id string
	require.NoError(b, tx.QueryRowContext(b.Context(), b.q(`SELECT id FROM millrace_outbox WHERE pos = $1 FOR UPDATE`), pos).Scan(&id))
	names, err := tx.QueryContext(b.Context(), b.q(`SELECT name FROM millrace_schedules WHERE id = $1 FOR UPDATE`), id)
	require.NoError(b, err)
	texts(b.T, names)
	return func() { require.NoError(b, tx.Rollback()) }
}
