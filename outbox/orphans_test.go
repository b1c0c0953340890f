package outbox_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/outbox"
	"github.com/millrace-go/millrace/outbox/outboxtest"
)

// orphans inserts n messages of a key that are held by a stop whose own message is gone, as when somebody deleted it by hand.
func (b *bench) orphans(key string, n int) {
	b.Helper()
	series, id, no := fmt.Sprintf(`generate_series(1, %d) AS seq`, n), `concat('%s', seq)`, "false"
	switch b.driver {
	case "mysql":
		series, no = fmt.Sprintf(`seq_1_to_%d`, n), "0"
	case "sqlite":
		series, id, no = fmt.Sprintf(`(WITH RECURSIVE c(seq) AS (VALUES (1) UNION ALL SELECT seq + 1 FROM c WHERE seq < %d) SELECT seq FROM c)`, n), `'%s' || seq`, "0"
	}
	b.exec(fmt.Sprintf(`INSERT INTO millrace_outbox (id, lane, topic, order_key, ready, held, payload, metadata, created_at)
		SELECT `+id+`, %d, 't', '%s', %s, 'd', '', '{}', %s FROM %s`, key, outbox.Lane(key), key, no, b.in(0), series))
	b.exec(fmt.Sprintf(`INSERT INTO millrace_stops (lane, destination, order_key, pos, retry_at) VALUES (%d, 'd', '%s', 0, %s)`, outbox.Lane(key), key, b.in(0)))
}

// free counts the messages of a key that are not held, and makes sure that they are the lowest.
func (b *bench) free(key string) (n int64) {
	b.Helper()
	n = b.one(`SELECT count(*) FROM millrace_outbox WHERE held IS NULL AND order_key = '` + key + `'`)
	require.Equal(b, n, b.one(`SELECT count(*) FROM millrace_outbox WHERE held IS NULL AND order_key = '`+key+`'
		AND pos < (SELECT coalesce(min(pos), 9223372036854775807) FROM millrace_outbox WHERE held IS NOT NULL AND order_key = '`+key+`')`))
	return n
}

func (b *bench) promote(grants []outbox.Grant) outbox.Promotion {
	b.Helper()
	p, err := b.box.Store().Promote(b.Context(), grants)
	require.NoError(b, err)
	return p
}

// locking are the databases whose rows can be locked one by one.
var locking = []backend{postgresPool, mariadb}

// aPause is what a Promote that could do nothing leaves until the next one, at least.
const aPause = 20 * time.Millisecond

func TestAKeyWhoseStopIsAnOrphanIsSetFreeByStatementsThatChangeABoundedNumberOfRows(t *testing.T) {
	n := int64(2500)
	if testenv.Full() {
		n = 20_500
	}
	for _, back := range []backend{postgresPool, mariadb, sqlite} {
		t.Run(back.name, func(t *testing.T) {
			t.Parallel()
			b := open(t, back, outbox.Config{})
			grants := b.holder()
			b.orphans("k", int(n))
			most := func() int64 { return mostChanged }
			if b.driver != "sqlite" {
				most = b.watch()
			}
			for freed := int64(mostChanged); freed < n; freed += mostChanged {
				p := b.promote(grants)
				require.EqualValues(t, mostChanged, p.Ready)
				require.Positive(t, p.Next)
				require.LessOrEqual(t, p.Next, time.Millisecond, "there is more")
				require.Equal(t, freed, b.free("k"))
				require.EqualValues(t, 1, b.one(`SELECT count(*) FROM millrace_stops`), "the stop goes with the last of them")
			}
			p := b.promote(grants)
			require.Equal(t, outbox.Promotion{Ready: int(n % mostChanged)}, p)
			require.Equal(t, n, b.free("k"))
			require.EqualValues(t, mostChanged, most())
			if b.driver == "pgx" {
				require.Zero(t, b.one(`SELECT count(*) FROM millrace_stops`))
			}
		})
	}
}

// Who has locked a message may let it be, as a cancellation that is rolled back.
func TestOfAnOrphanedKeyNothingIsSetFreeBehindAMessageThatSomebodyHasLocked(t *testing.T) {
	for _, back := range locking {
		t.Run(back.name, func(t *testing.T) {
			t.Parallel()
			b := open(t, back, outbox.Config{})
			grants := b.holder()
			b.orphans("k", 300)
			b.orphans("other", 300)
			unlock := b.lock(b.one(`SELECT pos FROM millrace_outbox WHERE id = 'k101'`))
			p := b.promote(grants)
			require.Equal(t, 400, p.Ready)
			require.EqualValues(t, 100, b.free("k"))
			require.EqualValues(t, 300, b.free("other"), "another key is not held up")
			stops, err := b.box.Store().Stops(t.Context(), []int{outbox.Lane("k")})
			require.NoError(t, err)
			require.Empty(t, stops)
			require.Positive(t, b.one(`SELECT count(*) FROM millrace_stops WHERE order_key = 'k'`))
			p = b.promote(grants)
			require.Zero(t, p.Ready)
			require.GreaterOrEqual(t, p.Next, aPause)
			unlock()
			require.Equal(t, outbox.Promotion{Ready: 200}, b.promote(grants))
			require.EqualValues(t, 300, b.free("k"))
		})
	}
}

// Promote may run while the holder stops the key anew: by a message that was set free before.
func TestAStopThatIsNoOrphanAnyMoreStaysWhileItsKeyIsSetFree(t *testing.T) {
	b := open(t, postgresPool, outbox.Config{})
	grants := b.holder()
	first := b.insert(outboxtest.Entry{ID: "first", Topic: "t", Key: "k", Delay: time.Hour})[0]
	b.orphans("k", 10)
	refusal, err := b.raw.BeginTx(t.Context(), nil)
	require.NoError(t, err)
	defer refusal.Rollback()
	_, err = refusal.ExecContext(t.Context(), fmt.Sprintf(`UPDATE millrace_stops SET pos = %d`, first))
	require.NoError(t, err)
	promoted := make(chan int, 1)
	go func() {
		p, err := b.box.Store().Promote(t.Context(), grants)
		assert.NoError(t, err)
		promoted <- p.Ready
	}()
	testenv.Eventually(t, 30*time.Second, "promote waits for the stop", func() bool { return b.waiters() > 0 || len(promoted) > 0 })
	require.NoError(t, refusal.Commit())
	require.Equal(t, 10, <-promoted)
	stops, err := b.box.Store().Stops(t.Context(), []int{outbox.Lane("k")})
	require.NoError(t, err)
	require.Equal(t, []outbox.Stop{{Lane: outbox.Lane("k"), Destination: "d", Key: "k", Pos: first}}, stops)
}

func TestAPromoteThatFindsOnlyLockedRowsIsNotWorthAnotherOneAtOnce(t *testing.T) {
	for _, back := range locking {
		t.Run(back.name, func(t *testing.T) {
			t.Parallel()
			b := open(t, back, outbox.Config{})
			grants := b.holder()
			delayed := func(id string) int64 {
				return b.insert(outboxtest.Entry{ID: id, Topic: "t", Key: id, Delay: time.Microsecond})[0]
			}
			unlock := b.lock(delayed("locked"))
			delayed("free")
			p := b.promote(grants)
			require.Equal(t, 1, p.Ready)
			require.LessOrEqual(t, p.Next, time.Millisecond, "what was just done may not be all")
			p = b.promote(grants)
			require.Zero(t, p.Ready)
			require.GreaterOrEqual(t, p.Next, aPause)
			require.Less(t, p.Next, time.Second, "nobody else waits for long")
			delayed("later")
			require.Equal(t, 1, b.promote(grants).Ready, "the locked one hides nothing")
			unlock()
			require.Equal(t, outbox.Promotion{Ready: 1}, b.promote(grants))
		})
	}
}

func TestAPromoteOfLanesThatSomebodyElseHoldsIsNotWorthAnotherOneAtOnce(t *testing.T) {
	each(t, func(b *bench) {
		grants := b.holder()
		b.insert(outboxtest.Entry{ID: "due", Topic: "t", Key: "k", Delay: time.Microsecond})
		b.exec(`UPDATE millrace_lanes SET epoch = epoch + 1`)
		p := b.promote(grants)
		require.Zero(b, p.Ready)
		require.True(b, p.Next == 0 || p.Next >= aPause, p.Next)
	})
}

func TestAnUnconfirmedMessageThatSomebodyHasLockedIsLookedForWithPauses(t *testing.T) {
	for _, back := range locking {
		t.Run(back.name, func(t *testing.T) {
			t.Parallel()
			b := open(t, back, outbox.Config{})
			grants := b.holder()
			pos := b.insert(outboxtest.Entry{ID: "1", Topic: "t", Key: "k", After: outbox.AwaitConfirmation})[0]
			b.settleAll(grants, outbox.Ref{Pos: pos, ID: "1"})
			b.exec(`UPDATE millrace_sent SET due_at = ` + b.in(-1000000))
			operator, err := b.raw.BeginTx(t.Context(), nil)
			require.NoError(t, err)
			defer operator.Rollback()
			_, err = operator.ExecContext(t.Context(), `UPDATE millrace_sent SET size = size`)
			require.NoError(t, err)
			p := b.promote(grants)
			require.Zero(t, p.Ready)
			require.GreaterOrEqual(t, p.Next, aPause)
			require.Less(t, p.Next, time.Second)
		})
	}
}
