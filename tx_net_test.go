package millrace_test

import (
	"context"
	"database/sql"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/lib/pq"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/pgxtx"
)

// dialer makes the connections of a driver.
type dialer func(ctx context.Context, network, address string) (net.Conn, error)

func (d dialer) Dial(network, address string) (net.Conn, error) {
	return d(context.Background(), network, address)
}

func (d dialer) DialTimeout(network, address string, _ time.Duration) (net.Conn, error) {
	return d.Dial(network, address)
}

// through gives e a pool of at most n connections, which dial makes.
func through(t *testing.T, e *env, n int, dial dialer, cfg millrace.Config) {
	switch e.driver {
	case "pgx":
		c, err := pgxpool.ParseConfig(e.dsn)
		require.NoError(t, err)
		c.MaxConns, c.ConnConfig.DialFunc = int32(n), pgconn.DialFunc(dial)
		e.native, err = pgxpool.NewWithConfig(t.Context(), c)
		require.NoError(t, err)
		t.Cleanup(e.native.Close)
		e.usePgx(pgxtx.Pool(e.native, cfg), e.native)
	case "pgx-stdlib":
		c, err := pgx.ParseConfig(e.dsn)
		require.NoError(t, err)
		c.DialFunc = pgconn.DialFunc(dial)
		e.use(limited(t, stdlib.OpenDB(*c), n), cfg)
	case "pq":
		c, err := pq.NewConnector(e.dsn)
		require.NoError(t, err)
		c.Dialer(dial)
		e.use(limited(t, sql.OpenDB(c), n), cfg)
	case "mysql":
		c, err := mysql.ParseDSN(e.dsn)
		require.NoError(t, err)
		c.DialFunc = dial
		connector, err := mysql.NewConnector(c)
		require.NoError(t, err)
		e.use(limited(t, sql.OpenDB(connector), n), cfg)
	}
}

func limited(t *testing.T, db *sql.DB, n int) *sql.DB {
	db.SetMaxOpenConns(n)
	t.Cleanup(func() { _ = db.Close() })
	return db
}

// meter counts round trips: each time that a client speaks after it has heard something.
type meter struct{ trips atomic.Int64 }

func (m *meter) dial(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, network, address)
	return &meteredConn{Conn: c, m: m}, err
}

type meteredConn struct {
	net.Conn
	m     *meter
	spoke atomic.Bool
}

func (c *meteredConn) Write(p []byte) (int, error) {
	if !c.spoke.Swap(true) {
		c.m.trips.Add(1)
	}
	return c.Conn.Write(p)
}

func (c *meteredConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.spoke.Store(false)
	}
	return n, err
}

// What InTx asks of the server beyond what the driver's own transaction does: nothing, or what the table says.
func TestInTxMakesNoRoundTripOfItsOwn(t *testing.T) {
	const insert = "INSERT INTO notes (note) VALUES ('a')"
	for driver, extra := range map[string]struct{ reads, message, witness int64 }{
		"pgx":        {-1, 0, 0}, // BEGIN travels with a query, messages and witness with COMMIT
		"pgx-stdlib": {0, 1, 1},
		"pq":         {0, 1, 2}, // it prepares what has arguments
		"mysql":      {2, 1, 2}, // the guard, by which it learns whether rows have hidden a deadlock
	} {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			e := newEnv(t, driver, millrace.Config{})
			require.NoError(t, millrace.Migrate(t.Context(), e.db, millrace.WitnessMigrations()))
			var m meter
			measure := func(run func(ctx context.Context) error) int64 { // a driver pings now and then, or prepares first
				least := int64(1000)
				for range 20 {
					e.reset(t)
					before := m.trips.Load()
					require.NoError(t, run(t.Context()))
					least = min(least, m.trips.Load()-before)
				}
				return least
			}
			inTx := func(fn func(ctx context.Context, tx handle) error) int64 {
				return measure(func(ctx context.Context) error { return e.InTx(ctx, fn) })
			}
			through(t, e, 1, m.dial, millrace.Config{})
			bare := measure(func(ctx context.Context) error { return e.bare(ctx, insert) })
			require.EqualValues(t, 3, bare)
			require.Equal(t, bare, inTx(func(ctx context.Context, tx handle) error { return tx.Exec(ctx, insert) }))
			require.Equal(t, bare+1+extra.reads, inTx(func(ctx context.Context, tx handle) error {
				_, err := tx.Count(ctx, "SELECT COUNT(*) FROM notes")
				require.NoError(t, err)
				return tx.Exec(ctx, insert)
			}))
			require.Equal(t, bare+extra.message, inTx(func(ctx context.Context, tx handle) error {
				require.NoError(t, publish(ctx, e.db, "message"))
				return tx.Exec(ctx, insert)
			}))
			through(t, e, 2, m.dial, millrace.Config{ResolveTimeout: time.Second}) // the last connection takes more care
			require.Equal(t, bare+extra.witness, inTx(func(ctx context.Context, tx handle) error { return tx.Exec(ctx, insert) }))
		})
	}
}

// bare is the driver's own transaction.
func (e *env) bare(ctx context.Context, query string) error {
	if e.driver == "pgx" {
		return pgx.BeginFunc(ctx, e.native, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, query)
			return err
		})
	}
	return orm(ctx, e.pool, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, query)
		return err
	})
}
