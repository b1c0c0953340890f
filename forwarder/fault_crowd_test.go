package forwarder_test

import (
	"fmt"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/forwarder"
	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/outbox"
)

// crowd is what stands in front of the good messages and may not go.
type crowd struct {
	stopped, far, later, good int
	bad, first                int64 // positions of the message that cannot be sent, and of the first good one
}

// rows inserts n rows without going through the outbox. Of id, key and lane, n is the number of the row.
func (l *ledger) rows(n int, id, key, lane, topic, due string) {
	l.Helper()
	if n == 0 {
		return
	}
	numbers := map[string]string{
		"pgx":    fmt.Sprintf(`generate_series(1, %d) AS n`, n),
		"mysql":  fmt.Sprintf(`(SELECT seq AS n FROM seq_1_to_%d) numbers`, n),
		"sqlite": fmt.Sprintf(`(WITH RECURSIVE c(n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM c WHERE n < %d) SELECT n FROM c)`, n),
	}[l.driver]
	payload := map[string]string{"pgx": `'\x7b7d'::bytea`, "mysql": `x'7b7d'`, "sqlite": `x'7b7d'`}[l.driver]
	now := map[string]string{"pgx": `clock_timestamp()`, "mysql": `UTC_TIMESTAMP(6)`, "sqlite": `CAST(unixepoch('subsec') * 1000000 AS INTEGER)`}[l.driver]
	ready := map[bool]string{true: "true", false: "false"}[due == "NULL"]
	l.exec(fmt.Sprintf(`INSERT INTO millrace_outbox (id, lane, topic, order_key, ready, due_at, size, metadata, payload, created_at)
		SELECT %s, %s, '%s', %s, %s, %s, 2, '{}', %s, %s FROM %s`, id, lane, topic, key, ready, due, payload, now, numbers))
}

// arrive sets up a crowd, with one message that cannot be sent in front of all.
func (l *ledger) arrive(c *crowd) {
	l.Helper()
	inAnHour := map[string]string{
		"pgx":    `clock_timestamp() + interval '1 hour'`,
		"mysql":  `UTC_TIMESTAMP(6) + INTERVAL 1 HOUR`,
		"sqlite": `CAST((unixepoch('subsec') + 3600) * 1000000 AS INTEGER)`,
	}[l.driver]
	l.publishOne("orders", message1("bad"))
	l.rows(c.stopped, l.concat(`'stopped-'`, `n`), `'stuck'`, fmt.Sprint(outbox.Lane("stuck")), "orders", "NULL")
	l.rows(c.far, l.concat(`'far-'`, `n`), `''`, `n % 64`, "far.orders", "NULL")
	l.rows(c.later, l.concat(`'later-'`, `n`), `''`, `n % 64`, "orders", inAnHour)
	l.rows(c.good, l.concat(`'free-good-'`, `n`), `''`, `n % 64`, "orders", "NULL")
	l.exec(`INSERT INTO ledger SELECT id FROM millrace_outbox WHERE id LIKE 'free-good-%'`)
	require.NoError(l, l.raw.QueryRow(`SELECT (SELECT pos FROM millrace_outbox WHERE id = 'bad'),
		(SELECT min(pos) FROM millrace_outbox WHERE id LIKE 'free-good-%')`).Scan(&c.bad, &c.first))
	if c.stopped > 0 {
		l.stopKey("stuck")
	}
	if l.driver == "pgx" {
		l.exec(`ANALYZE millrace_outbox`)
	}
}

// stopKey does what a forwarder does when the first message of a key was refused.
func (l *ledger) stopKey(key string) {
	l.Helper()
	ctx, store := l.Context(), l.box.Store()
	require.NoError(l, store.Join(ctx, "setup", time.Minute))
	grants, err := store.Claim(ctx, "setup", outbox.Lanes)
	require.NoError(l, err)
	require.Len(l, grants, outbox.Lanes)
	for _, g := range grants {
		if g.Lane != outbox.Lane(key) {
			continue
		}
		for first := true; ; first = false {
			rows, err := store.Read(ctx, outbox.Read{Lanes: []int{g.Lane}, Topics: []string{"orders"}, BusyKeys: []string{""}, MaxRows: 2000, MaxBytes: 1 << 30})
			require.NoError(l, err)
			if len(rows) == 0 {
				break
			}
			var refs []outbox.Ref
			for _, r := range rows {
				refs = append(refs, r.Ref)
			}
			if first {
				_, err = store.Refuse(ctx, g, outbox.Refused{Ref: refs[0], Key: key, Attempt: 1, Reason: "no_route", RetryIn: time.Hour, Stop: true})
				require.NoError(l, err)
				refs = refs[1:]
			}
			_, err = store.Hold(ctx, g, "", refs)
			require.NoError(l, err)
		}
	}
	require.NoError(l, store.Leave(ctx, "setup"))
}

// forward lets five replicas send what may be sent, and returns how many rows of the outbox the database
// looked at meanwhile.
func (l *ledger) forward(c crowd) (examined int64) {
	l.Helper()
	t := l.TB.(*testing.T)
	r := l.reopen(t, at(l.database, l.dsn))
	r.raw.SetMaxIdleConns(16)
	before := l.examined()
	pub := &picky{record: record{filepath.Join(t.TempDir(), "got")}, bad: "bad"}
	var healed atomic.Bool
	far := away{record{filepath.Join(t.TempDir(), "far")}, func() bool { return !healed.Load() }}
	cfg := forwarder.Config{
		MaxAttempts: 4, RetryBase: 50 * time.Millisecond, RetryMax: 100 * time.Millisecond,
		Routes: []forwarder.Route{{Name: "far", Topics: []string{"far.#"}, Publisher: far}},
	}
	var stops []func() error
	for range 5 {
		_, stop := r.run(pub, cfg)
		stops = append(stops, stop)
	}
	testenv.Eventually(t, 3*time.Minute, "the good ones are sent", func() bool { return len(pub.ids(t)) >= c.good })
	// By position: these looks at the table are counted among the others.
	testenv.Eventually(t, 3*time.Minute, "the good ones are settled, and the bad one is parked", func() bool {
		left := 0
		require.NoError(t, r.raw.QueryRow(fmt.Sprintf(`SELECT count(*) FROM millrace_outbox WHERE pos >= %d OR pos = %d`, c.first, c.bad)).Scan(&left))
		pace(t.Context(), 50*time.Millisecond)
		return left == 0
	})
	for _, stop := range stops {
		require.NoError(t, stop())
	}
	require.NoError(t, r.raw.Close())
	examined = l.examined() - before

	require.Zero(t, l.requireReconciled(pub.ids(t)), "duplicates")
	require.Equal(t, 4, pub.tries)
	require.Equal(t, map[string]bool{"bad too_large 4": true}, l.ids(`SELECT `+l.concat("id", "' '", "reason", "' '", "attempts")+` FROM millrace_dead`))
	require.Equal(t, c.stopped+c.far+c.later, l.waiting(), "the others are still there")
	if c.far > 0 && testenv.Full() {
		healed.Store(true)
		_, stop := l.run(pub, cfg)
		testenv.Eventually(t, 3*time.Minute, "the far ones follow", func() bool { return l.count(`millrace_outbox WHERE topic = 'far.orders'`) == 0 })
		require.NoError(t, stop())
		require.Len(t, far.ids(t), c.far)
	}
	return examined
}

// examined is how many rows and index entries of the outbox the server has read so far, by its own
// count, which is of the whole server on MariaDB, and which connections of PostgreSQL bring up to date
// when they end.
func (l *ledger) examined() (n int64) {
	l.Helper()
	switch l.driver {
	case "pgx":
		testenv.Eventually(l, time.Minute, "the others' connections have ended", func() bool {
			var others int
			require.NoError(l, l.raw.QueryRow(`SELECT count(*) FROM pg_stat_activity
				WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'`).Scan(&others))
			return others == 0
		})
		require.NoError(l, l.raw.QueryRow(`SELECT (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE relname = 'millrace_outbox')
			+ (SELECT seq_tup_read FROM pg_stat_user_tables WHERE relname = 'millrace_outbox')`).Scan(&n))
	case "mysql":
		require.NoError(l, l.raw.QueryRow(`SELECT CAST(sum(variable_value) AS SIGNED) FROM information_schema.global_status WHERE variable_name LIKE 'Handler\_read%'`).Scan(&n))
	}
	return n
}

// TestWhatMayNotGoHidesNothingBehindIt puts into the front what a forwarder must not even look at
// again: counted in rows that the database examined, the good messages go out as if they were alone.
func TestWhatMayNotGoHidesNothingBehindIt(t *testing.T) {
	t.Parallel()
	full := crowd{stopped: 500, far: 500, later: 20_000, good: 500}
	dbs := []database{postgres}
	if testenv.Full() {
		dbs = databases
		full = crowd{stopped: 20_000, far: 20_000, later: 300_000, good: 10_000}
	}
	for _, d := range dbs {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			if d.driver == "mysql" {
				d = at(d, testenv.OwnMariaDB(t).URL)
			}
			l, c := newLedger(t, d), full
			l.raw.SetMaxIdleConns(-1) // see examined
			if d.driver == "pgx" {
				// In a table of few rows the planner rightly reads all of them. What counts is what it does with many.
				name := strings.Split(l.dsn[strings.LastIndex(l.dsn, "/")+1:], "?")[0]
				l.exec(`ALTER DATABASE ` + name + ` SET enable_seqscan = off`)
			}
			only := crowd{good: c.good}
			l.arrive(&only)
			alone := l.forward(only)
			l.exec(`DELETE FROM millrace_dead`)
			l.exec(`DELETE FROM ledger`)
			l.arrive(&c)
			examined := l.forward(c)
			t.Logf("rows examined: %d alone, %d in the crowd", alone, examined)
			if d.driver == "sqlite" || !testenv.Full() {
				return // it does not count, or the polls of a slow run outweigh so small a crowd
			}
			require.Less(t, examined, alone+int64(c.later), "those that are not due were looked at")
		})
	}
}
