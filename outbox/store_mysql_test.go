package outbox_test

import (
	"bytes"
	"context"
	"database/sql"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/outbox"
)

// The store changes settings of a connection while a transaction of its own is open. The connection is
// the application's.
func TestAConnectionOfMySQLGoesBackAsItCame(t *testing.T) {
	t.Parallel()
	b := open(t, mariadb, outbox.Config{})
	b.raw.SetMaxOpenConns(1)
	settings := func() (s string) {
		require.NoError(t, b.raw.QueryRowContext(t.Context(),
			`SELECT concat_ws(' ', @@autocommit, @@wait_timeout, @@innodb_lock_wait_timeout, @@tx_isolation, @@in_transaction)`).Scan(&s))
		return s
	}
	before := settings()

	store := b.box.Store()
	require.NoError(t, store.Join(t.Context(), "a", time.Minute))
	grants, err := store.Claim(t.Context(), "a", outbox.Lanes)
	require.NoError(t, err)
	require.Len(t, grants, outbox.Lanes)
	require.Equal(t, before, settings())
	require.EqualValues(t, outbox.Lanes, b.one(`SELECT count(*) FROM millrace_lanes WHERE owner = 'a'`), "it was committed")

	// A failure in the middle, from which the transaction is rolled back.
	b.exec(`ALTER TABLE millrace_stops RENAME COLUMN retry_at TO gone`)
	_, err = store.Refuse(t.Context(), grants[0], outbox.Refused{
		Ref: outbox.Ref{Pos: b.waitingOne(grants[0].Lane), ID: "1"}, Attempt: 1, RetryIn: time.Second, Stop: true,
	})
	require.Error(t, err)
	require.Equal(t, before, settings())
	require.Zero(t, b.one(`SELECT attempts FROM millrace_outbox`), "it was rolled back")
}

// deadEnd is a connection that falls silent for ever when it is told the end of a transaction, as behind a router that
// forgot it.
type deadEnd struct {
	net.Conn
	fell   func()
	silent atomic.Bool
	closed chan struct{}
	once   sync.Once
}

func (c *deadEnd) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte("innodb_lock_wait_timeout = @millrace_lock")) {
		c.silent.Store(true)
		c.fell()
	}
	if c.silent.Load() {
		return len(p), nil
	}
	return c.Conn.Write(p)
}

func (c *deadEnd) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.silent.Load() {
		<-c.closed
		return 0, net.ErrClosed
	}
	return n, err
}

func (c *deadEnd) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// Whoever gave a context that has ended does not wait until the system gives the connection up, a quarter of an hour
// later.
func TestATransactionOnMySQLThatCannotBeEndedIsGivenUp(t *testing.T) {
	t.Parallel()
	direct := open(t, mariadb, outbox.Config{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var made []*deadEnd // by one goroutine after the other
	cfg, err := mysql.ParseDSN(direct.url)
	require.NoError(t, err)
	cfg.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
		made = append(made, &deadEnd{Conn: conn, fell: cancel, closed: make(chan struct{})})
		return made[len(made)-1], err
	}
	connector, err := mysql.NewConnector(cfg)
	require.NoError(t, err)
	raw := sql.OpenDB(connector)
	raw.SetMaxOpenConns(1)
	t.Cleanup(func() { _ = raw.Close() })
	box, err := outbox.New(millrace.SQL(raw), outbox.Config{})
	require.NoError(t, err)
	require.NoError(t, direct.box.Store().Join(t.Context(), "a", time.Minute))
	claimed := make(chan error, 1)
	go func() {
		_, err := box.Store().Claim(ctx, "a", outbox.Lanes)
		claimed <- err
	}()
	select {
	case err := <-claimed:
		require.Error(t, err)
		require.Error(t, ctx.Err(), "the end of the transaction was not seen")
	case <-time.After(time.Minute):
		for _, c := range made {
			_ = c.Close()
		}
		t.Errorf("it waits for ever: %v", <-claimed)
	}
}

// A statement that locks sees lanes as they are now, and forwarders as they were when it began. One that
// joins and claims meanwhile must keep what it has. The look at the lanes is held up, half-way, by a view.
func TestAClaimOnMySQLTakesNothingFromOneWhoCameSinceItBegan(t *testing.T) {
	t.Parallel()
	b := open(t, mariadb, outbox.Config{})
	store := b.box.Store()
	require.NoError(t, store.Join(t.Context(), "first", time.Minute))
	b.exec(`UPDATE millrace_lanes SET owner = 'vanished'`) // whether it lives is looked up for the first lane
	b.exec(`RENAME TABLE millrace_lanes TO lanes`)
	b.exec(`CREATE VIEW millrace_lanes AS SELECT * FROM lanes
		WHERE CASE WHEN lane = 30 THEN GET_LOCK(DATABASE(), 60) + RELEASE_LOCK(DATABASE()) ELSE 2 END = 2`)
	gate, err := b.raw.Conn(t.Context())
	require.NoError(t, err)
	_, err = gate.ExecContext(t.Context(), `DO GET_LOCK(DATABASE(), 0)`)
	require.NoError(t, err)

	claimed := make(chan []outbox.Grant)
	go func() {
		grants, err := store.Claim(t.Context(), "first", outbox.Lanes)
		assert.NoError(t, err)
		claimed <- grants
	}()
	testenv.Eventually(t, 30*time.Second, "the claim looks at the lanes", func() bool {
		return b.one(`SELECT count(*) FROM information_schema.processlist WHERE db = database() AND state = 'User lock'`) > 0
	})
	require.NoError(t, store.Join(t.Context(), "second", time.Minute))
	b.exec(`UPDATE lanes SET owner = 'second', epoch = epoch + 1 WHERE lane >= 60`)
	_, err = gate.ExecContext(t.Context(), `DO RELEASE_LOCK(DATABASE())`)
	require.NoError(t, err)
	require.NoError(t, gate.Close())

	grants := <-claimed
	require.Len(t, grants, 60)
	require.EqualValues(t, 4, b.one(`SELECT count(*) FROM lanes WHERE owner = 'second' AND epoch = 1`))
	require.EqualValues(t, 60, b.one(`SELECT sum(crashes) FROM lanes`), "each lane of the one that vanished, once")
}

// waitingOne inserts a message into a lane and returns its position.
func (b *bench) waitingOne(lane int) int64 {
	b.Helper()
	b.exec(`INSERT INTO millrace_outbox (id, lane, topic, order_key, payload, metadata, created_at) VALUES ('1', ?, 't', 'k', '', '{}', UTC_TIMESTAMP(6))`, lane)
	return b.one(`SELECT max(pos) FROM millrace_outbox`)
}
