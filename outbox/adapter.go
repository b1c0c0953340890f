package outbox

import (
	"context"
	stdsql "database/sql"
	"errors"
	"fmt"
	"slices"

	"github.com/ThreeDotsLabs/watermill-sql/v4/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace/internal/txn"
)

// PostgreSQLSchema is the outbox on PostgreSQL as a schema and offsets adapter of watermill-sql.
//
// With it the stock sql.Publisher writes into the outbox, for users who hold a raw transaction: the
// message is inserted at once, and the forwarder hears of it at its next poll. And a stock
// sql.Subscriber reads one topic of the outbox; the forwarder's configuration must then exclude that
// topic, because a topic has one kind of reader. It takes no consumer group, deletes what was acked and
// nothing else, and serves the topic in order to one consumer at a time. Messages that are not ready
// (delayed) it does not see.
//
// It creates no tables: see Migrations. The zero value is right for an outbox with a zero Config.
type PostgreSQLSchema struct{ Schema }

// MySQLSchema is what PostgreSQLSchema is, on MySQL and MariaDB.
type MySQLSchema struct{ Schema }

// SQLiteSchema is what PostgreSQLSchema is, on SQLite.
type SQLiteSchema struct{ Schema }

// Schema configures an adapter.
type Schema struct {
	// Config is that of the Box on the same tables: all but AllowOutsideTx and Logger counts.
	Config Config
	// BatchSize is the number of messages that a subscriber reads at once. Default 100.
	BatchSize int
}

var (
	_ sql.SchemaAdapter  = PostgreSQLSchema{}
	_ sql.OffsetsAdapter = PostgreSQLOffsets{}
	_ sql.SchemaAdapter  = MySQLSchema{}
	_ sql.OffsetsAdapter = MySQLOffsets{}
	_ sql.SchemaAdapter  = SQLiteSchema{}
	_ sql.OffsetsAdapter = SQLiteOffsets{}
)

// InsertQuery implements sql.SchemaAdapter. No messages are a statement that does nothing.
func (s PostgreSQLSchema) InsertQuery(p sql.InsertQueryParams) (sql.Query, error) {
	return s.insert(txn.Postgres, p.Topic, p.Msgs)
}

// InsertQuery implements sql.SchemaAdapter. No messages are a statement that does nothing.
func (s MySQLSchema) InsertQuery(p sql.InsertQueryParams) (sql.Query, error) {
	return s.insert(txn.MySQL, p.Topic, p.Msgs)
}

// InsertQuery implements sql.SchemaAdapter. No messages are a statement that does nothing.
func (s SQLiteSchema) InsertQuery(p sql.InsertQueryParams) (sql.Query, error) {
	return s.insert(txn.SQLite, p.Topic, p.Msgs)
}

func (s Schema) insert(dialect txn.Dialect, topic string, msgs []*message.Message) (sql.Query, error) {
	if err := s.Config.check(); err != nil {
		return sql.Query{}, err
	}
	contexts := func(i int) context.Context { return msgs[i].Context() }
	entries, err := newEncoder(s.Config).encode(contexts, topic, msgs)
	if err != nil {
		return sql.Query{}, err
	}
	if len(entries) == 0 {
		return sql.Query{Query: `SELECT 1`}, nil
	}
	if len(chunks(dialect, entries)) > 1 {
		return sql.Query{}, fmt.Errorf("%w: %d messages are too many, or more than %d bytes, for one call of a sql.Publisher", ErrInvalidMessage, len(entries), maxBytes)
	}
	if slices.ContainsFunc(entries, func(e entry) bool { return e.schedule != "" }) {
		return sql.Query{}, fmt.Errorf("%w: a schedule name needs Box.Publish, which writes it into a table of its own", ErrInvalidMessage)
	}
	text, args := insertion(dialect, s.prefix(), entries)
	return sql.Query{Query: text, Args: args}, nil
}

func (s Schema) prefix() string {
	if s.Config.Prefix == "" {
		return DefaultPrefix
	}
	return s.Config.Prefix
}

// SelectQuery implements sql.SchemaAdapter.
func (s PostgreSQLSchema) SelectQuery(p sql.SelectQueryParams) (sql.Query, error) {
	return s.selection(p, `$1`, pgRowColumns, `o.ready`, ` FOR UPDATE`)
}

// SelectQuery implements sql.SchemaAdapter.
func (s MySQLSchema) SelectQuery(p sql.SelectQueryParams) (sql.Query, error) {
	return s.selection(p, `?`, mysqlColumns, `o.ready = 1`, ` FOR UPDATE`)
}

// SelectQuery implements sql.SchemaAdapter.
func (s SQLiteSchema) SelectQuery(p sql.SelectQueryParams) (sql.Query, error) {
	return s.selection(p, `?`, sqliteColumns, `o.ready = 1`, ``)
}

func (s Schema) selection(p sql.SelectQueryParams, param, columns, ready, lock string) (sql.Query, error) {
	if p.ConsumerGroup != "" {
		return sql.Query{}, errors.New("outbox: consumer groups are not supported: a message has one reader")
	}
	size := s.BatchSize
	if size == 0 {
		size = 100
	}
	if size < 0 {
		return sql.Query{}, errors.New("outbox: Schema.BatchSize is negative")
	}
	text := fmt.Sprintf(`SELECT %s FROM millrace_outbox o WHERE %s AND o.topic = %s ORDER BY o.pos LIMIT %d%s`,
		columns, ready, param, size, lock)
	return sql.Query{Query: rename(text, s.prefix()), Args: []any{p.Topic}}, nil
}

// UnmarshalMessage implements sql.SchemaAdapter. A row that cannot be decoded is an error, and stays
// in front of its topic: a subscriber of watermill-sql has no way to set it aside.
func (s Schema) UnmarshalMessage(p sql.UnmarshalMessageParams) (sql.Row, error) {
	r, err := newRowReader().read(p.Row)
	if err == nil {
		err = r.Err
	}
	if err != nil {
		return sql.Row{}, err
	}
	msg := message.NewMessage(r.ID, r.Payload)
	msg.Metadata = r.Metadata
	return sql.Row{Offset: r.Pos, UUID: []byte(r.ID), Payload: r.Payload, Msg: msg}, nil
}

// SchemaInitializingQueries implements sql.SchemaAdapter. The tables are made by the migrations.
func (s Schema) SchemaInitializingQueries(sql.SchemaInitializingQueriesParams) ([]sql.Query, error) {
	return nil, nil
}

// SubscribeIsolationLevel implements sql.SchemaAdapter: at a higher level than READ COMMITTED the rows
// beside those that are read would be locked against the business.
func (s Schema) SubscribeIsolationLevel() stdsql.IsolationLevel { return stdsql.LevelReadCommitted }

// SubscribeIsolationLevel implements sql.SchemaAdapter: SQLite is always serializable.
func (s SQLiteSchema) SubscribeIsolationLevel() stdsql.IsolationLevel { return stdsql.LevelDefault }
