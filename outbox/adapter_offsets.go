package outbox

import (
	"errors"
	"fmt"
	"strings"

	"github.com/ThreeDotsLabs/watermill-sql/v4/pkg/sql"

	"github.com/millrace-go/millrace/internal/txn"
)

// PostgreSQLOffsets goes with PostgreSQLSchema: an ack deletes the messages up to and including the
// one that was acked last, by position and id. The rest of what was read stays.
type PostgreSQLOffsets struct{ offsets }

// MySQLOffsets goes with MySQLSchema.
type MySQLOffsets struct{ offsets }

// SQLiteOffsets goes with SQLiteSchema.
type SQLiteOffsets struct{ offsets }

// NewPostgreSQLOffsets is needed only for a Config with another Prefix.
func NewPostgreSQLOffsets(cfg Config) PostgreSQLOffsets {
	return PostgreSQLOffsets{offsets{cfg.Prefix}}
}

// NewMySQLOffsets is needed only for a Config with another Prefix.
func NewMySQLOffsets(cfg Config) MySQLOffsets { return MySQLOffsets{offsets{cfg.Prefix}} }

// NewSQLiteOffsets is needed only for a Config with another Prefix.
func NewSQLiteOffsets(cfg Config) SQLiteOffsets { return SQLiteOffsets{offsets{cfg.Prefix}} }

type offsets struct{ prefix string }

// AckMessageQuery implements sql.OffsetsAdapter.
func (o PostgreSQLOffsets) AckMessageQuery(p sql.AckMessageQueryParams) (sql.Query, error) {
	return o.ack(txn.Postgres, p)
}

// AckMessageQuery implements sql.OffsetsAdapter.
func (o MySQLOffsets) AckMessageQuery(p sql.AckMessageQueryParams) (sql.Query, error) {
	return o.ack(txn.MySQL, p)
}

// AckMessageQuery implements sql.OffsetsAdapter.
func (o SQLiteOffsets) AckMessageQuery(p sql.AckMessageQueryParams) (sql.Query, error) {
	return o.ack(txn.SQLite, p)
}

// ack cuts the batch at the last row that was acked: the subscriber hands over all that it read, also
// what it never gave to a handler.
func (o offsets) ack(dialect txn.Dialect, p sql.AckMessageQueryParams) (sql.Query, error) {
	if p.ConsumerGroup != "" {
		return sql.Query{}, errors.New("outbox: consumer groups are not supported: a message has one reader")
	}
	var pairs []string
	var args []any
	for _, r := range p.Rows {
		args = append(args, r.Offset, string(r.UUID))
		if dialect == txn.Postgres {
			pairs = append(pairs, fmt.Sprintf(`($%d::bigint, $%d::text)`, len(args)-1, len(args)))
		} else {
			pairs = append(pairs, `(?, ?)`)
		}
		if r.Offset == p.LastRow.Offset {
			prefix := o.prefix
			if prefix == "" {
				prefix = DefaultPrefix
			}
			in := strings.Join(pairs, ", ")
			if dialect == txn.SQLite {
				in = "VALUES " + in
			}
			return sql.Query{Query: rename(`DELETE FROM millrace_outbox WHERE (pos, id) IN (`+in+`)`, prefix), Args: args}, nil
		}
	}
	return sql.Query{}, fmt.Errorf("outbox: the acked position %d is not in the batch", p.LastRow.Offset)
}

// ConsumedMessageQuery implements sql.OffsetsAdapter.
func (offsets) ConsumedMessageQuery(sql.ConsumedMessageQueryParams) (sql.Query, error) {
	return sql.Query{}, nil
}

// NextOffsetQuery implements sql.OffsetsAdapter. There are no offsets.
func (offsets) NextOffsetQuery(sql.NextOffsetQueryParams) (sql.Query, error) { return sql.Query{}, nil }

// SchemaInitializingQueries implements sql.OffsetsAdapter. The tables are made by the migrations.
func (offsets) SchemaInitializingQueries(sql.OffsetsSchemaInitializingQueriesParams) ([]sql.Query, error) {
	return nil, nil
}

// BeforeSubscribingQueries implements sql.OffsetsAdapter.
func (offsets) BeforeSubscribingQueries(sql.BeforeSubscribingQueriesParams) ([]sql.Query, error) {
	return nil, nil
}
