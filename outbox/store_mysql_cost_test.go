package outbox_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/outbox"
	"github.com/millrace-go/millrace/outbox/outboxtest"
)

// crowded is an outbox on MariaDB with n rows each that are ready, not due, and held behind three keys, and
// statistics from when it was empty. It has one connection, whose counters are the cost of a call.
func crowded(t *testing.T, n int) (*bench, []outbox.Grant) {
	t.Helper()
	b := open(t, mariadb, outbox.Config{})
	b.raw.SetMaxOpenConns(1)
	grants := b.holder()
	for _, table := range []string{"millrace_outbox", "millrace_sent"} {
		b.exec(`ALTER TABLE ` + table + ` STATS_PERSISTENT = 1, STATS_AUTO_RECALC = 0`)
		rows, err := b.raw.QueryContext(t.Context(), `ANALYZE TABLE `+table)
		require.NoError(t, err)
		require.NoError(t, rows.Close())
	}
	fill := func(id, lane, topic, key, ready, due, held string) {
		b.exec(fmt.Sprintf(`INSERT INTO millrace_outbox (id, lane, topic, order_key, ready, due_at, held, payload, metadata, created_at)
			SELECT concat('%s', seq), %s, %s, %s, %s, %s, %s, '', '{}', UTC_TIMESTAMP(6) FROM seq_1_to_%d`, id, lane, topic, key, ready, due, held, n))
	}
	fill("ready", "seq % 64", "'orders'", "''", "1", "NULL", "NULL")
	fill("later", "seq % 64", "'orders'", "''", "0", "UTC_TIMESTAMP(6) + INTERVAL 1 HOUR", "NULL")
	fill("held", "7", "'orders'", "concat('key', seq % 3)", "0", "NULL", "'broker'")
	b.exec(`INSERT INTO millrace_stops (lane, destination, order_key, pos, retry_at)
		SELECT 7, 'broker', concat('key', seq), (SELECT min(pos) FROM millrace_outbox), UTC_TIMESTAMP(6) FROM seq_0_to_2`)
	b.exec(`INSERT INTO millrace_sent (pos, id, lane, topic, order_key, due_at, keep, keep_us, size, metadata, payload, created_at, sent_at)
		SELECT pos, concat('sent', id), lane, topic, order_key, UTC_TIMESTAMP(6) + INTERVAL 2 HOUR, 2, 1, 0, '{}', '', created_at, created_at
		FROM millrace_outbox WHERE ready = 1`)
	return b, grants
}

// examined counts what the connection reads from tables and indexes.
func (b *bench) examined(what func()) int64 {
	b.Helper()
	b.exec(`FLUSH STATUS`)
	what()
	return b.one(`SELECT CAST(sum(variable_value) AS SIGNED) FROM information_schema.session_status WHERE variable_name LIKE 'Handler\_read%'`)
}

func TestALookAtWhatIsNotDueOrHeldReadsNoneOfItOnMariaDB(t *testing.T) {
	t.Parallel()
	const n = 3000
	b, grants := crowded(t, n)
	examined := b.examined(func() {
		p, err := b.box.Store().Promote(t.Context(), grants)
		require.NoError(t, err)
		require.Zero(t, p.Ready)
		require.Greater(t, p.Next, 50*time.Minute)
		require.Less(t, p.Next, 61*time.Minute)
	})
	t.Logf("%d rows examined", examined)
	require.Less(t, examined, int64(n/2), "a few for each lane and each held key")
}

func TestAReadOnMariaDBReadsWhatItReturnsWhateverElseWaits(t *testing.T) {
	t.Parallel()
	const n, rows = 3000, 100
	b, _ := crowded(t, n)
	lanes := make([]int, outbox.Lanes)
	for i := range lanes {
		lanes[i] = i
	}
	var flying []int64
	read := func(count int) int64 {
		q := outbox.Read{Lanes: lanes, Topics: []string{"orders"}, Exclude: flying, MaxRows: count, MaxBytes: 1 << 20}
		return b.examined(func() {
			got, err := b.box.Store().Read(t.Context(), q)
			require.NoError(t, err)
			require.Len(t, got, count)
			flying = nil
			for _, r := range got {
				flying = append(flying, r.Pos)
			}
		})
	}
	alone := read(rows)
	read(10 * rows) // in flight from now on
	behind := read(rows)
	t.Logf("rows examined: %d, and %d behind %d in flight", alone, behind, 10*rows)
	require.Less(t, alone, int64(2*outbox.Lanes*rows))
	require.Less(t, behind, alone+2*10*rows, "each that is in flight is passed over once")
}

func TestManyReadyRowsOfATopicCostTheTopicsNothingOnMariaDB(t *testing.T) {
	t.Parallel()
	const n = 3000
	b, _ := crowded(t, n)
	topics := func() (ready []string) {
		v, err := b.box.Store().Topics(t.Context())
		require.NoError(t, err)
		return v.Ready
	}
	for _, when := range []string{"first", "again"} {
		examined := b.examined(func() { require.Equal(t, []string{"orders"}, topics()) })
		t.Logf("%s: %d rows examined", when, examined)
		require.Less(t, examined, int64(50), when)
	}
	b.exec(`INSERT INTO millrace_outbox (id, lane, topic, payload, metadata, created_at)
		SELECT concat('more', seq), 1, concat('topic', seq), '', '{}', UTC_TIMESTAMP(6) FROM seq_10_to_19`)
	b.exec(`INSERT INTO millrace_outbox (id, lane, topic, payload, metadata, created_at) VALUES ('other', 1, 'accounts', '', '{}', UTC_TIMESTAMP(6))`)
	examined := b.examined(func() { require.Len(t, topics(), 12) })
	t.Logf("new ones: %d rows examined", examined)
	require.Less(t, examined, int64(n/10))
	b.exec(`DELETE FROM millrace_outbox WHERE topic LIKE 'topic%'`)
	require.Equal(t, []string{"accounts", "orders"}, topics())
}

func TestStatsReadABoundedNumberOfRowsOnMariaDB(t *testing.T) {
	t.Parallel()
	const n = 3000
	b, _ := crowded(t, n)
	outbox.SetStatsLimit(b.box, 10)
	examined := b.examined(func() {
		v, err := b.box.Stats(t.Context())
		require.NoError(t, err)
		require.True(t, v.Capped)
		require.Len(t, v.Topics, 1)
		require.EqualValues(t, 11, v.Topics[0].Ready)
	})
	t.Logf("%d rows examined", examined)
	require.Less(t, examined, int64(n/2))
}

// There are more topics, and more stopped keys, than a statement names one by one.
func TestVeryManyTopicsAndStoppedKeysAreAllFoundOnMariaDB(t *testing.T) {
	t.Parallel()
	b := open(t, mariadb, outbox.Config{})
	grants := b.holder()
	b.exec(`INSERT INTO millrace_outbox (id, lane, topic, payload, metadata, created_at)
		SELECT concat('x', seq), seq % 64, concat('topic', seq), '', '{}', UTC_TIMESTAMP(6) FROM seq_1_to_300`)
	for range 3 {
		v, err := b.box.Store().Topics(t.Context())
		require.NoError(t, err)
		require.Len(t, slices.Compact(v.Ready), 300)
	}
	b.exec(`INSERT INTO millrace_outbox (id, lane, topic, order_key, ready, held, payload, metadata, created_at)
		SELECT concat('h', seq), seq % 64, 'topic', concat('key', seq), 0, 'broker', '', '{}', UTC_TIMESTAMP(6) FROM seq_1_to_600`)
	b.exec(`INSERT INTO millrace_stops (lane, destination, order_key, pos, retry_at)
		SELECT seq % 64, 'broker', concat('key', seq), (SELECT min(pos) FROM millrace_outbox), UTC_TIMESTAMP(6) FROM seq_1_to_300`)
	free := 0
	testenv.Eventually(t, time.Minute, "the keys that no stop holds are free", func() bool {
		p, err := b.box.Store().Promote(t.Context(), grants)
		require.NoError(t, err)
		free += p.Ready
		require.Equal(t, free < 300, p.Next > 0, "%d are free, next in %v", free, p.Next)
		return free >= 300
	})
	require.EqualValues(t, 300, b.one(`SELECT count(*) FROM millrace_outbox WHERE held IS NOT NULL AND CAST(SUBSTRING(order_key, 4) AS UNSIGNED) <= 300`))
}

// A statement takes 65,535 parameters and 16 MiB, and a read looks at each lane for each topic.
func TestAReadOfManyTopicsBesideMuchInFlightAndManyBusyKeysIsNotTooLargeForMariaDB(t *testing.T) {
	t.Parallel()
	b := open(t, mariadb, outbox.Config{})
	const topics = 60
	q := outbox.Read{MaxRows: 2000, MaxBytes: 1 << 20}
	for lane := range outbox.Lanes {
		q.Lanes = append(q.Lanes, lane)
	}
	for i := range topics {
		q.Topics = append(q.Topics, fmt.Sprint("topic", i))
		q.BusyKeys = append(q.BusyKeys, fmt.Sprint("busy key ", i))
	}
	b.exec(fmt.Sprintf(`INSERT INTO millrace_outbox (pos, id, lane, topic, payload, metadata, created_at)
		SELECT 1000000000 + seq, concat('flying', seq), seq %% 64, concat('topic', seq %% %d), '', '{}', UTC_TIMESTAMP(6) FROM seq_1_to_2000`, topics))
	read := func() []outbox.Row {
		rows, err := b.box.Store().Read(t.Context(), q)
		require.NoError(t, err)
		return rows
	}
	for _, r := range read() {
		q.Exclude = append(q.Exclude, r.Pos)
	}
	require.Len(t, q.Exclude, 2000)
	b.insert(outboxtest.Entry{ID: "1", Topic: "topic7", Key: "busy key 3"}, outboxtest.Entry{ID: "2", Topic: "topic59", Key: "another"})
	rows := read()
	require.Len(t, rows, 1)
	require.Equal(t, "2", rows[0].ID)
}

// The server shows a commit before it is on disk. It is made to keep it there for long.
func TestWhatWasReadIsStillThereWhenMariaDBIsKilled(t *testing.T) {
	t.Parallel()
	server := testenv.OwnMariaDB(t)
	b := connect(t, mariadb, server.URL, outbox.Config{})
	require.NoError(t, b.box.Migrate(t.Context()))
	lazily := func(publish func()) {
		b.exec(`SET GLOBAL innodb_flush_log_at_timeout = 2700`)
		b.exec(`SET GLOBAL innodb_flush_log_at_trx_commit = 0`)
		publish()
		b.exec(`SET GLOBAL innodb_flush_log_at_trx_commit = 1`)
	}
	lazily(func() { b.publish("orders", msg("1", "")) })
	require.Empty(t, b.read("invoices"))
	require.Zero(t, b.one(`SELECT count(*) FROM millrace_flush`), "an empty read writes nothing")
	require.Len(t, b.read("orders"), 1)
	server.Kill()
	server.Start()
	testenv.Eventually(t, time.Minute, "the server is back", func() bool { return b.raw.PingContext(t.Context()) == nil })
	require.EqualValues(t, 1, b.one(`SELECT count(*) FROM millrace_outbox`), "what was read may have been sent")
	require.EqualValues(t, 1, b.one(`SELECT sum(n) FROM millrace_flush`))
}
