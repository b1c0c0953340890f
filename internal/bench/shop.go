package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/ThreeDotsLabs/watermill"
	wmsql "github.com/ThreeDotsLabs/watermill-sql/v4/pkg/sql"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/internal/meta"
	"github.com/millrace-go/millrace/internal/testenv/servers"
	"github.com/millrace-go/millrace/outbox"
)

// shop is a service that writes a business row and, with it, a message.
type shop struct {
	order func(ctx context.Context, seq int) error // one transaction
	// poison publishes a message that can never be sent.
	poison func(ctx context.Context) error
	box    *outbox.Box // of millrace's, else nil
	close  func()
}

const (
	shopTable  = `CREATE TABLE IF NOT EXISTS business (id bigserial PRIMARY KEY, customer text NOT NULL, amount bigint NOT NULL)`
	shopInsert = `INSERT INTO business (customer, amount) VALUES ($1, $2)`

	plainTable = `CREATE TABLE IF NOT EXISTS plain (pos bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, id text, lane smallint,
		topic text, order_key text, size integer, metadata text, payload bytea)`
	plainInsert = `INSERT INTO plain (id, lane, topic, order_key, size, metadata, payload) VALUES ($1, $2, $3, $4, $5, $6, $7)`
)

// Ways to write, and drivers.
const (
	rowOnly    = "row"
	withStock  = "watermill"
	withOurs   = "millrace"
	withNotify = "millrace, NOTIFY" // tells other processes
	withPlain  = "limit: plain row" // the same row into a table with a primary key and nothing else
	driverPgx  = 0
	driverSQL  = 1
	keysOfShop = 1000
)

// openShop opens a shop on PostgreSQL, with its tables.
func openShop(ctx context.Context, d database, way string, driver, connections int) (*shop, error) {
	if driver == driverSQL {
		return openShopSQL(ctx, d, way, connections)
	}
	cfg, err := pgxpool.ParseConfig(d.URL)
	if err != nil {
		return nil, err
	}
	cfg.MaxConns, cfg.MinConns = int32(connections+4), int32(connections)
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, err
	}
	if _, err := pool.Exec(ctx, shopTable); err != nil {
		return nil, err
	}
	s := &shop{close: pool.Close}
	row := func(ctx context.Context, tx pgx.Tx, seq int) error {
		_, err := tx.Exec(ctx, shopInsert, "customer", seq)
		return err
	}
	switch way {
	case rowOnly:
		s.order = func(ctx context.Context, seq int) error {
			return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { return row(ctx, tx, seq) })
		}
	case withStock:
		if err := stockInit(ctx, d.Kind, wmsql.BeginnerFromPgx(pool)); err != nil {
			return nil, err
		}
		s.poison = func(context.Context) error { return poisonStock(d.Kind, wmsql.BeginnerFromPgx(pool)) }
		s.order = func(ctx context.Context, seq int) error {
			return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
				if err := row(ctx, tx, seq); err != nil {
					return err
				}
				return publishStock(d.Kind, wmsql.TxFromPgx(tx), seq)
			})
		}
	case withPlain:
		if _, err := pool.Exec(ctx, plainTable); err != nil {
			return nil, err
		}
		s.order = func(ctx context.Context, seq int) error { return plainOrder(ctx, pool, seq) }
	default:
		return s, s.ours(ctx, d, pool, way, row)
	}
	return s, nil
}

// plainOrder is what one would write by hand: the message's row travels with COMMIT.
func plainOrder(ctx context.Context, pool *pgxpool.Pool, seq int) error {
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release() // which closes a connection with an open transaction
	if _, err := conn.Exec(ctx, "BEGIN"); err != nil {
		return err
	}
	if _, err := conn.Exec(ctx, shopInsert, "customer", seq); err != nil {
		return err
	}
	msg := newMessage(seq, keysOfShop)
	metadata, err := json.Marshal(msg.Metadata)
	if err != nil {
		return err
	}
	var b pgx.Batch
	b.Queue(plainInsert, msg.UUID, seq%outbox.Lanes, topic, msg.Metadata[meta.Key], len(msg.Payload), string(metadata), []byte(msg.Payload))
	b.Queue("COMMIT")
	return conn.SendBatch(ctx, &b).Close()
}

func openShopSQL(ctx context.Context, d database, way string, connections int) (*shop, error) {
	raw, err := openSQL(d)
	if err != nil {
		return nil, err
	}
	raw.SetMaxIdleConns(connections + 4)
	if _, err := raw.ExecContext(ctx, shopTable); err != nil {
		return nil, err
	}
	s := &shop{close: func() { _ = raw.Close() }}
	type execer interface {
		ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	}
	row := func(ctx context.Context, tx execer, seq int) error {
		_, err := tx.ExecContext(ctx, shopInsert, "customer", seq)
		return err
	}
	inTx := func(ctx context.Context, fn func(tx *sql.Tx) error) error {
		tx, err := raw.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		if err := fn(tx); err != nil {
			_ = tx.Rollback()
			return err
		}
		return tx.Commit()
	}
	switch way {
	case rowOnly:
		s.order = func(ctx context.Context, seq int) error {
			return inTx(ctx, func(tx *sql.Tx) error { return row(ctx, tx, seq) })
		}
	case withStock:
		if err := stockInit(ctx, d.Kind, wmsql.BeginnerFromStdSQL(raw)); err != nil {
			return nil, err
		}
		s.order = func(ctx context.Context, seq int) error {
			return inTx(ctx, func(tx *sql.Tx) error {
				if err := row(ctx, tx, seq); err != nil {
					return err
				}
				return publishStock(d.Kind, wmsql.TxFromStdSQL(tx), seq)
			})
		}
	case withOurs:
		db := millrace.SQL(raw)
		if s.box, err = outbox.New(db, outbox.Config{}); err != nil {
			return nil, err
		}
		if err := s.box.Migrate(ctx); err != nil {
			return nil, err
		}
		s.order = func(ctx context.Context, seq int) error {
			return millrace.InTx(ctx, db, func(ctx context.Context, tx *millrace.Tx) error {
				if err := row(ctx, tx, seq); err != nil {
					return err
				}
				return s.box.Publish(ctx, topic, newMessage(seq, keysOfShop))
			})
		}
	default:
		return nil, fmt.Errorf("no such way: %s", way)
	}
	return s, nil
}

// publishStock writes one message as Watermill's documentation shows it: a publisher made for the
// transaction.
func publishStock(k servers.Kind, tx wmsql.ContextExecutor, seq int) error {
	pub, err := stockWriter(k, tx, false)
	if err != nil {
		return err
	}
	return pub.Publish(topic, newMessage(seq, 0))
}

// poisonStock puts a message into the outbox that is no envelope.
func poisonStock(k servers.Kind, db wmsql.ContextExecutor) error {
	schema, _ := stockSchema(k, false)
	pub, err := wmsql.NewPublisher(db, wmsql.PublisherConfig{SchemaAdapter: schema}, watermill.NopLogger{})
	if err != nil {
		return err
	}
	return pub.Publish(stockTopic, newMessage(0, 0))
}
