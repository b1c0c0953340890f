package takeover

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace/internal/txn"
)

// envelope is what components/forwarder's publisher puts into a message, as its DefaultMarshaler writes it.
type envelope struct {
	DestinationTopic string            `json:"destination_topic"`
	UUID             string            `json:"uuid"`
	Payload          []byte            `json:"payload"`
	Metadata         map[string]string `json:"metadata"`
}

func unwrap(payload []byte) (topic string, msg *message.Message, err error) {
	var e envelope
	if json.Unmarshal(payload, &e) != nil || e.DestinationTopic == "" {
		return "", nil, errors.New("it is no envelope of components/forwarder") // the cause would quote it
	}
	msg = message.NewMessage(e.UUID, e.Payload)
	for name, value := range e.Metadata {
		msg.Metadata[name] = value
	}
	return e.DestinationTopic, msg, nil
}

// position is how far a stock forwarder has come.
type position struct {
	offset int64
	xid    string // PostgreSQL only
}

// stock is the statements for one kind of database. Each bears the mark, by which replicas of a Takeover
// tell each other from stock forwarders.
type stock struct {
	messages, offsets string

	groups  string // consumer groups
	create  string // the stored offset, if there is none: group
	lock    string // the stored offset: group
	touch   string // makes who has read it before us read it again: group
	beyond  string // messages to move: $1 offset, $2 xid, $3 cursor, then limit
	passed  string // messages at or below the offset: as beyond
	chosen  string // of those, some by their offsets: as beyond
	insert  string // uuid, payload, metadata
	refresh string // what the database remembers of its sessions within a transaction
	waiting string // sessions that wait for the stored offset

	isolation sql.IsolationLevel
	position  func(p position, cursor int64) []any
	scan      func(row txn.Scanner, p *position) error
	remove    func(rows []row) string
	json      func(text []byte) any // as an argument
}

const mark = `/* millrace takeover */ `

// stock returns the statements for the database.
func (t *Takeover) stock(ctx context.Context) (*stock, error) {
	dialect, err := t.pool.Dialect(ctx)
	if err != nil {
		return nil, err
	}
	switch dialect {
	case txn.Postgres:
		return t.postgres(), nil
	case txn.MySQL:
		return t.mysql(), nil
	}
	return nil, setupf("watermill-sql's stock schemas are taken over on PostgreSQL and MySQL, this is %s", dialect)
}

func (t *Takeover) tables(quote string) (messages, offsets string) {
	messages, offsets = t.cfg.MessagesTable, t.cfg.OffsetsTable
	if messages == "" {
		messages = quote + "watermill_" + t.cfg.ForwarderTopic + quote
	}
	if offsets == "" {
		offsets = quote + "watermill_offsets_" + t.cfg.ForwarderTopic + quote
	}
	return messages, offsets
}

// postgres: messages are moved in the order of their offsets, which are drawn at the insert, and so in the
// order in which conflicting transactions commit; transaction ids are drawn earlier, and are only used to
// tell what the stock forwarder has passed. A stock forwarder that waits for the offset while it is held has
// an older view of the messages: that the offset's row is written makes it fail and look again.
func (t *Takeover) postgres() *stock {
	s := &stock{isolation: sql.LevelReadCommitted}
	s.messages, s.offsets = t.tables(`"`)
	s.build(`"offset"`, `SELECT m."offset", m.transaction_id::text, m.uuid, m.payload, m.created_at::text FROM {messages} m
		WHERE (m.transaction_id, m."offset") {cmp} ($1::text::xid8, $2::bigint) AND m."offset" > $3::bigint ORDER BY m."offset" LIMIT {limit}`)
	s.create = mark + `INSERT INTO ` + s.offsets + ` (consumer_group, offset_acked, last_processed_transaction_id) VALUES ($1, 0, '0') ON CONFLICT DO NOTHING`
	s.lock = mark + `SELECT coalesce(offset_acked, 0), last_processed_transaction_id::text FROM ` + s.offsets + ` WHERE consumer_group = $1 FOR UPDATE`
	s.touch = mark + `UPDATE ` + s.offsets + ` SET offset_acked = offset_acked WHERE consumer_group = $1`
	s.insert = mark + `INSERT INTO ` + s.messages + ` (uuid, payload, metadata, transaction_id) VALUES ($1, $2, $3, pg_current_xact_id())`
	s.refresh = `SELECT pg_stat_clear_snapshot()`
	s.waiting = mark + `SELECT count(*) FROM pg_stat_activity WHERE (pg_backend_pid() = ANY (pg_blocking_pids(pid))
		OR wait_event_type = 'Lock' AND datname = current_database() AND strpos(query, $1) > 0) AND strpos(query, 'millrace takeover') = 0`
	s.position = func(p position, cursor int64) []any { return []any{p.xid, p.offset, cursor} }
	s.scan = func(row txn.Scanner, p *position) error { return row.Scan(&p.offset, &p.xid) }
	s.json = func(text []byte) any { return text } // the column may be BYTEA
	s.remove = func(rows []row) string {           // by the primary key
		return mark + `DELETE FROM ` + s.messages + ` WHERE (transaction_id, "offset") IN (` +
			list(rows, func(r row) string { return fmt.Sprintf(`('%s'::xid8, %d)`, r.xid, r.offset) }) + `)`
	}
	return s
}

// mysql: rows that are locked are being inserted, and are found later.
func (t *Takeover) mysql() *stock {
	s := &stock{isolation: sql.LevelReadCommitted}
	s.messages, s.offsets = t.tables("`")
	s.build("`offset`", "SELECT m.`offset`, '', m.uuid, m.payload, CAST(m.created_at AS CHAR) FROM {messages} m WHERE m.`offset` {cmp} ? AND m.`offset` > ? "+
		"ORDER BY m.`offset` LIMIT {limit}")
	s.create = mark + `INSERT IGNORE INTO ` + s.offsets + ` (consumer_group, offset_acked, offset_consumed) VALUES (?, 0, 0)`
	s.lock = mark + `SELECT coalesce(offset_acked, 0) FROM ` + s.offsets + ` WHERE consumer_group = ? FOR UPDATE`
	s.insert = mark + `INSERT INTO ` + s.messages + ` (uuid, payload, metadata) VALUES (?, ?, ?)`
	s.waiting = mark + `SELECT count(*) FROM information_schema.processlist
		WHERE id <> connection_id() AND db = database() AND locate(?, info) > 0 AND locate('millrace takeover', info) = 0`
	s.position = func(p position, cursor int64) []any { return []any{p.offset, cursor} }
	s.scan = func(row txn.Scanner, p *position) error { return row.Scan(&p.offset) }
	s.json = func(text []byte) any { return string(text) } // bytes are no JSON there
	s.remove = func(rows []row) string {
		return mark + "DELETE FROM " + s.messages + " WHERE `offset` IN (" +
			list(rows, func(r row) string { return strconv.FormatInt(r.offset, 10) }) + ")"
	}
	return s
}

// build makes the statements that read messages.
func (s *stock) build(offset, query string) {
	query = mark + strings.ReplaceAll(query, "{messages}", s.messages)
	s.beyond = strings.ReplaceAll(query, "{cmp}", ">") + ` FOR UPDATE SKIP LOCKED`
	s.passed = strings.ReplaceAll(query, "{cmp}", "<=")
	s.chosen = strings.Replace(s.passed, "ORDER BY", "AND m."+offset+" IN ({chosen}) ORDER BY", 1) + ` FOR UPDATE SKIP LOCKED`
	s.groups = mark + `SELECT consumer_group FROM ` + s.offsets
}

// pattern is what the statements of a stock forwarder have in them.
func (s *stock) pattern() string { return strings.Trim(s.offsets, "`\"") }

func list(rows []row, write func(row) string) string {
	texts := make([]string, len(rows))
	for i, r := range rows {
		texts[i] = write(r)
	}
	return strings.Join(texts, ",")
}
