package outbox_test

import (
	"database/sql"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/outbox"
)

// backlog inserts n rows of a topic without going through the outbox.
func (b *bench) backlog(topic string, n int, more ...string) {
	b.Helper()
	columns, values := "", ""
	if len(more) == 2 {
		columns, values = ", "+more[0], ", "+more[1]
	}
	b.exec(fmt.Sprintf(`INSERT INTO millrace_outbox (id, lane, topic, payload, size%s)
		SELECT '%s' || n, n %% 64, '%s', decode(repeat('ab', 100), 'hex'), 100%s FROM generate_series(1, %d) n`, columns, topic, topic, values, n))
}

// backlogOf inserts n rows with so many bytes of payload that no compression makes smaller.
func (b *bench) backlogOf(topic string, n, size int) {
	b.Helper()
	b.exec(fmt.Sprintf(`INSERT INTO millrace_outbox (id, lane, topic, payload, size)
		SELECT '%s' || n, n %% 64, '%s', decode((SELECT string_agg(md5((n * i)::text), '') FROM generate_series(1, %d) i), 'hex'), %d
		FROM generate_series(1, %d) n`, topic, topic, max(size/16, 1), size, n))
}

func TestADelayOrAStoppedKeyInFrontOfAReadCostsItNothing(t *testing.T) {
	t.Parallel()
	n := 5000
	if testenv.Full() {
		n = 100_000
	}
	b := open(t, postgres, outbox.Config{})
	b.exec(`ALTER TABLE millrace_outbox SET (autovacuum_enabled = off)`)
	// The rows in front are of the same topic, and stand before it in the table.
	b.backlog("behind", n, "ready, due_at", "false, clock_timestamp() + interval '1 hour'")
	b.exec(`UPDATE millrace_outbox SET id = 'later' || id`)
	b.backlog("behind", n, "ready, held, order_key", "false, 'broker', 'k'")
	b.exec(`UPDATE millrace_outbox SET id = 'held' || id WHERE held IS NOT NULL`)
	const rows = 500
	b.backlog("behind", rows)
	b.exec(`VACUUM ANALYZE millrace_outbox`)
	text, args := outbox.ReadStatement("behind", 0)
	blocks := b.cost(text, args)
	t.Logf("blocks of a read of %d rows behind %d that may not go: %d", rows, 2*n, blocks)
	require.Less(t, blocks, 6*(rows+outbox.Lanes), "some blocks of indexes and one of the table for each row, and for each lane")
}

func TestStatsReadABoundedNumberOfRows(t *testing.T) {
	b := open(t, postgres, outbox.Config{})
	outbox.SetStatsLimit(b.box, 1000)
	b.backlog("many", 5000)
	b.backlog("few", 10)
	b.backlog("later", 3000, "ready, due_at", "false, clock_timestamp() + interval '1 hour'")
	v, err := b.box.Stats(t.Context())
	require.NoError(t, err)
	require.True(t, v.Capped)
	require.Len(t, v.Topics, 3)
	require.EqualValues(t, 10, v.Topics[0].Ready)
	require.EqualValues(t, 1001, v.Topics[1].Delayed)
	require.EqualValues(t, 1001, v.Topics[2].Ready)
	require.NotZero(t, v.Topics[2].Oldest)
}

func TestEveryStatementUsesItsIndex(t *testing.T) {
	b := open(t, postgres, outbox.Config{})
	b.exec(`ALTER TABLE millrace_outbox SET (autovacuum_enabled = off)`)
	b.exec(`VACUUM ANALYZE millrace_outbox`) // of the empty table: the worst that the planner can know
	dead, size := 20000, 100
	if testenv.Full() {
		dead, size = 1_000_000, 1024
	}
	b.backlogOf("dead", dead, size)
	b.backlog("live", 1000)
	b.exec(`INSERT INTO millrace_schedules (name, id) SELECT 'n' || id, id FROM millrace_outbox LIMIT 20000`)
	b.exec(`INSERT INTO millrace_sending (name, id) SELECT 'n' || id, id FROM millrace_outbox LIMIT 20000`)
	b.backlog("later", 5000, "ready, due_at", "false, clock_timestamp() + interval '1 hour'")
	b.backlog("held", 5000, "ready, held, order_key", "false, 'broker', 'k' || n % 10")
	for _, known := range []string{"statistics of the empty table", "analyzed"} {
		for _, mode := range []string{"force_generic_plan", "force_custom_plan"} {
			for name, statement := range outbox.PostgresStatements() {
				t.Run(known+"/"+mode+"/"+name, func(t *testing.T) {
					plan := b.plan(t, mode, statement)
					require.Contains(t, plan, "Index")
					for _, table := range []string{"outbox", "schedules", "sending"} {
						require.NotContains(t, plan, "Seq Scan on millrace_"+table, plan)
					}
				})
			}
		}
		b.exec(`ANALYZE millrace_outbox`)
	}
}

// A planner that does not know how few rows of a lane are wanted expects a tenth of them. With a million messages it took
// the read for so dear that PostgreSQL compiled it, each time anew, and a read cost five times as much.
func TestThePlannerKnowsHowFewRowsOfALaneAReadWants(t *testing.T) {
	b := open(t, postgres, outbox.Config{})
	b.backlog("live", 100_000)
	b.exec(`VACUUM ANALYZE millrace_outbox`)
	for _, mode := range []string{"force_generic_plan", "force_custom_plan"} {
		plan := b.plan(t, mode, outbox.PostgresStatements()["read"]) // of 32 rows
		require.Regexp(t, `Limit +\(cost=\S+ rows=32 `, plan)
		require.Regexp(t, `Limit +\(cost=\S+ rows=640 `, b.plan(t, mode, outbox.PostgresStatements()["along"]))
	}
}

// plan prepares a statement and explains it.
func (b *bench) plan(t *testing.T, mode, statement string) string {
	t.Helper()
	conn, err := b.raw.Conn(t.Context())
	require.NoError(t, err)
	defer conn.Close()
	exec := func(query string) {
		_, err := conn.ExecContext(t.Context(), query)
		require.NoError(t, err)
	}
	text, args, _ := strings.Cut(statement, "\x00")
	exec(`SET plan_cache_mode = ` + mode)
	exec(`PREPARE statement AS ` + text)
	defer exec(`DEALLOCATE statement`)
	if args != "" {
		args = "(" + args + ")"
	}
	rows, err := conn.QueryContext(t.Context(), `EXPLAIN EXECUTE statement`+args)
	require.NoError(t, err)
	return strings.Join(texts(t, rows), "\n")
}

func texts(t *testing.T, rows *sql.Rows) (lines []string) {
	t.Helper()
	defer rows.Close()
	for rows.Next() {
		var line string
		require.NoError(t, rows.Scan(&line))
		lines = append(lines, line)
	}
	require.NoError(t, rows.Err())
	return lines
}

func TestAStatementPlannedForASmallTableIsNotUsedForALargeOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var size outbox.TableSize
		busy := func(pages int64) (tag string) {
			for range 100 {
				tag = size.Tag(pages)
			}
			return tag
		}
		empty := size.Tag(0)
		require.Equal(t, empty, busy(1000), "the size is asked for at most once a second")
		time.Sleep(2 * time.Second)
		small := busy(1000)
		require.NotEqual(t, empty, small)
		time.Sleep(2 * time.Second)
		require.Equal(t, small, busy(1023), "a little more is the same")
		time.Sleep(2 * time.Second)
		require.NotEqual(t, small, busy(100000))
		time.Sleep(2 * time.Second)
		size.Tag(100000)
		time.Sleep(2 * time.Second)
		require.NotEqual(t, small, size.Tag(1000), "a statement now and then does not ask so often")
		time.Sleep(10 * time.Second)
		require.Equal(t, small, size.Tag(1000))
	})
}

func TestSQLiteReadsByItsIndex(t *testing.T) {
	b := open(t, sqlite, outbox.Config{})
	plan := outbox.SQLitePlan(t.Context(), b.raw)
	require.Contains(t, plan, "SEARCH p USING INDEX millrace_outbox_ready (topic=? AND lane=?)")
	require.NotContains(t, plan, "SCAN p")
	require.NotContains(t, plan, "SCAN o")
}
