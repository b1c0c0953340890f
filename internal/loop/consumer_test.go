package loop_test

import (
	"context"
	"net"
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/dedup"
	"github.com/millrace-go/millrace/internal/fault/proxy"
	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/middleware"
	"github.com/millrace-go/millrace/outbox"
	"github.com/millrace-go/millrace/pgxtx"
)

// consumer is a handler that writes a row, with its inbox and its outbox.
type consumer struct {
	db            millrace.DB
	box           *outbox.Box
	transactional message.HandlerMiddleware
	handle        message.NoPublishHandlerFunc
	trips         atomic.Int64 // round trips to the database
}

// connections is how many a consumer has at most.
const connections = 20

// newSQLConsumer is one on database/sql, so far from its database.
func newSQLConsumer(t testing.TB, roundTrip time.Duration) *consumer {
	c := &consumer{}
	cfg, err := pgx.ParseConfig(far(t, testenv.Postgres(t), roundTrip))
	require.NoError(t, err)
	cfg.DialFunc = c.dial
	raw := stdlib.OpenDB(*cfg)
	raw.SetMaxOpenConns(connections)
	raw.SetMaxIdleConns(connections)
	t.Cleanup(func() { _ = raw.Close() })
	setUp(t, c, millrace.SQL(raw), func(ctx context.Context, tx *millrace.Tx, text string, args ...any) error {
		_, err := tx.ExecContext(ctx, text, args...)
		return err
	})
	return c
}

// newPgxConsumer is one on native pgx.
func newPgxConsumer(t testing.TB, roundTrip time.Duration) *consumer {
	c := &consumer{}
	cfg, err := pgxpool.ParseConfig(far(t, testenv.Postgres(t), roundTrip))
	require.NoError(t, err)
	cfg.ConnConfig.DialFunc = c.dial
	cfg.MaxConns = connections
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	setUp(t, c, pgxtx.Pool(pool), func(ctx context.Context, tx pgx.Tx, text string, args ...any) error {
		_, err := tx.Exec(ctx, text, args...)
		return err
	})
	return c
}

// far is the URL of a database that is so far away.
func far(t testing.TB, at string, roundTrip time.Duration) string {
	u, err := url.Parse(at)
	require.NoError(t, err)
	if roundTrip > 0 {
		u.Host = proxy.Delayed(t, u.Host, roundTrip)
	}
	return u.String()
}

func setUp[T any](t testing.TB, c *consumer, db millrace.TxDB[T], exec func(ctx context.Context, tx T, text string, args ...any) error) {
	c.db = db
	require.NoError(t, millrace.Migrate(t.Context(), db, dedup.Migrations(), outbox.Migrations()))
	inbox, err := dedup.NewInbox(db, dedup.InboxConfig{})
	require.NoError(t, err)
	c.box, err = outbox.New(db, outbox.Config{})
	require.NoError(t, err)
	c.transactional, err = middleware.Transactional(db, inbox, middleware.TransactionalConfig{Consumer: group})
	require.NoError(t, err)
	require.NoError(t, millrace.InTx(t.Context(), db, func(ctx context.Context, tx T) error {
		return exec(ctx, tx, `CREATE TABLE effects (id text NOT NULL)`)
	}))
	c.handle = func(msg *message.Message) error {
		return millrace.InTx(msg.Context(), db, func(ctx context.Context, tx T) error {
			return exec(ctx, tx, `INSERT INTO effects (id) VALUES ($1)`, msg.UUID)
		}, millrace.Mandatory())
	}
}

// dial counts the round trips of what it connects.
func (c *consumer) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	counted := &counted{Conn: conn, trips: &c.trips}
	counted.answered.Store(true)
	return counted, nil
}

// counted is a connection whose round trips are counted: writes that follow an answer.
type counted struct {
	net.Conn
	trips    *atomic.Int64
	answered atomic.Bool
}

func (c *counted) Write(p []byte) (int, error) {
	if c.answered.Swap(false) {
		c.trips.Add(1)
	}
	return c.Conn.Write(p)
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.answered.Store(true)
	}
	return n, err
}
