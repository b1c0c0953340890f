package outbox_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

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
			`SELECT concat_ws(' ', @@autocommit, @@wait_timeout, @@innodb_lock_wait_timeout, @@in_transaction)`).Scan(&s))
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

// A statement that locks sees lanes as they are now, and forwarders as they were when it began. One that
// joins and claims meanwhile must keep what it has. The look at the lanes is slowed down by a view.
func TestAClaimOnMySQLTakesNothingFromOneWhoCameSinceItBegan(t *testing.T) {
	t.Parallel()
	b := open(t, mariadb, outbox.Config{})
	store := b.box.Store()
	require.NoError(t, store.Join(t.Context(), "first", time.Minute))
	b.exec(`RENAME TABLE millrace_lanes TO lanes`)
	b.exec(`CREATE VIEW millrace_lanes AS SELECT * FROM lanes WHERE SLEEP(0.01) = 0`)

	claimed := make(chan []outbox.Grant)
	go func() {
		grants, err := store.Claim(t.Context(), "first", outbox.Lanes)
		assert.NoError(t, err)
		claimed <- grants
	}()
	testenv.Eventually(t, 10*time.Second, "the claim looks at the lanes", func() bool {
		return b.one(`SELECT count(*) FROM information_schema.processlist WHERE db = database() AND state = 'User sleep'`) > 0
	})
	require.NoError(t, store.Join(t.Context(), "second", time.Minute))
	b.exec(`UPDATE lanes SET owner = 'second', epoch = epoch + 1 WHERE lane >= 60`)

	grants := <-claimed
	require.Len(t, grants, 60)
	require.EqualValues(t, 4, b.one(`SELECT count(*) FROM lanes WHERE owner = 'second' AND epoch = 1`))
	require.EqualValues(t, 0, b.one(`SELECT sum(crashes) FROM lanes`))
}

// waitingOne inserts a message into a lane and returns its position.
func (b *bench) waitingOne(lane int) int64 {
	b.Helper()
	b.exec(`INSERT INTO millrace_outbox (id, lane, topic, order_key, payload, metadata, created_at) VALUES ('1', ?, 't', 'k', '', '{}', UTC_TIMESTAMP(6))`, lane)
	return b.one(`SELECT max(pos) FROM millrace_outbox`)
}
