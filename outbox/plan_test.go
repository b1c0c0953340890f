package outbox_test

import (
	"database/sql"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

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

func TestEveryStatementUsesItsIndex(t *testing.T) {
	b := open(t, postgres, outbox.Config{})
	b.exec(`ALTER TABLE millrace_outbox SET (autovacuum_enabled = off)`)
	b.exec(`VACUUM ANALYZE millrace_outbox`) // of the empty table: the worst that the planner can know
	b.backlog("dead", 20000)
	b.backlog("live", 1000)
	b.backlog("later", 5000, "ready, due_at", "false, clock_timestamp() + interval '1 hour'")
	b.backlog("held", 5000, "ready, held, order_key", "false, 'broker', 'k' || n % 10")
	for _, known := range []string{"statistics of the empty table", "analyzed"} {
		for _, mode := range []string{"force_generic_plan", "force_custom_plan"} {
			for name, statement := range outbox.PostgresStatements() {
				t.Run(known+"/"+mode+"/"+name, func(t *testing.T) {
					plan := b.plan(t, mode, statement)
					require.Contains(t, plan, "Index")
					require.NotContains(t, plan, "Seq Scan on millrace_outbox", plan)
				})
			}
		}
		b.exec(`ANALYZE millrace_outbox`)
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
		empty := size.Tag(0)
		require.Equal(t, empty, size.Tag(1000), "the size is asked for at most once a second")
		time.Sleep(2 * time.Second)
		small := size.Tag(1000)
		require.NotEqual(t, empty, small)
		time.Sleep(2 * time.Second)
		require.Equal(t, small, size.Tag(1023), "a little more is the same")
		time.Sleep(2 * time.Second)
		require.NotEqual(t, small, size.Tag(100000))
	})
}

func TestSQLiteReadsByItsIndex(t *testing.T) {
	b := open(t, sqlite, outbox.Config{})
	plan := outbox.SQLitePlan(t.Context(), b.raw)
	require.Contains(t, plan, "SEARCH p USING INDEX millrace_outbox_ready (topic=? AND lane=?)")
	require.NotContains(t, plan, "SCAN p")
	require.NotContains(t, plan, "SCAN o")
}
