package outbox_test

import (
	"context"
	"database/sql"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/outbox"
	"github.com/millrace-go/millrace/outbox/outboxtest"
)

// ownServer is a server of the test's own on which transactions can be prepared.
func ownServer(t *testing.T) (*testenv.Server, *bench) {
	t.Helper()
	server := testenv.OwnPostgres(t)
	setup, err := sql.Open("pgx", server.URL)
	require.NoError(t, err)
	// Autovacuum would take transaction ids, and write to the disk what others have not waited for.
	for _, setting := range []string{`max_prepared_transactions = 10`, `wal_writer_delay = '10s'`, `autovacuum = off`} {
		_, err = setup.ExecContext(t.Context(), `ALTER SYSTEM SET `+setting)
		require.NoError(t, err)
	}
	require.NoError(t, setup.Close())
	server.Restart()
	b := connect(t, postgres, server.URL, outbox.Config{})
	require.NoError(t, b.box.Migrate(t.Context()))
	return server, b
}

// holder claims all lanes.
func (b *bench) holder() []outbox.Grant {
	b.Helper()
	require.NoError(b, b.box.Store().Join(b.Context(), "holder", time.Minute))
	grants, err := b.box.Store().Claim(b.Context(), "holder", outbox.Lanes)
	require.NoError(b, err)
	return grants
}

// raise brings the bound of reads to a position.
func (b *bench) raise(to int64) {
	b.Helper()
	testenv.Eventually(b.T, 30*time.Second, fmt.Sprintf("bound %d", to), func() bool {
		return outbox.Raise(b.Context(), b.box.Store()) == to
	})
}

// passing inserts messages and settles them, and returns the last position.
func (b *bench) passing(grants []outbox.Grant, ids ...string) (last int64) {
	b.Helper()
	for _, id := range ids {
		pos := b.insert(outboxtest.Entry{ID: id, Topic: "passing", Key: id})
		b.settleAll(grants, outbox.Ref{Pos: pos[0], ID: id})
		last = pos[0]
	}
	return last
}

// lateWriter begins to insert message "late" and is held up after its position was drawn.
func (b *bench) lateWriter() (goOn func(), done chan error) {
	b.Helper()
	b.exec(`CREATE OR REPLACE FUNCTION hold_up() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
		IF NEW.id = 'late' THEN PERFORM pg_advisory_xact_lock(7); END IF; RETURN NEW; END $$`)
	b.exec(`CREATE OR REPLACE TRIGGER hold_up BEFORE INSERT ON millrace_outbox FOR EACH ROW EXECUTE FUNCTION hold_up()`)
	gate, err := b.raw.Conn(b.Context())
	require.NoError(b, err)
	_, err = gate.ExecContext(b.Context(), `SELECT pg_advisory_lock(7)`)
	require.NoError(b, err)
	done = make(chan error, 1)
	go func() {
		_, err := b.raw.ExecContext(b.Context(), `INSERT INTO millrace_outbox (id, lane, topic, payload) VALUES ('late', 0, 'late', '')`)
		done <- err
	}()
	testenv.Eventually(b.T, 30*time.Second, "the writer waits", func() bool { return b.waiters() > 0 })
	return func() {
		b.Helper()
		_, err := gate.ExecContext(context.WithoutCancel(b.Context()), `SELECT pg_advisory_unlock(7)`)
		require.NoError(b, err)
		require.NoError(b, gate.Close())
	}, done
}

func TestTheBoundWaitsForAWriterThatDrewAPositionWithoutATransactionID(t *testing.T) {
	t.Parallel()
	b := open(t, postgres, outbox.Config{})
	grants := b.holder()
	before := b.passing(grants, "1", "2")
	goOn, done := b.lateWriter()
	require.Zero(t, b.one(`SELECT count(*) FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND datname = current_database() AND wait_event_type = 'Lock'`))
	b.passing(grants, "3", "4", "5")
	for range 5 {
		require.LessOrEqual(t, outbox.Raise(t.Context(), b.box.Store()), before)
	}
	goOn()
	require.NoError(t, <-done)
	for range 3 {
		outbox.Raise(t.Context(), b.box.Store())
	}
	rows := b.read("late")
	require.Len(t, rows, 1)
	require.Equal(t, before+1, rows[0].Pos)
}

// Who waits in INSERT ... ON CONFLICT has drawn a position, has no transaction id yet, and gets one that is
// higher than those of all who ended meanwhile.
func TestTheBoundWaitsForAWriterThatWaitedForAnother(t *testing.T) {
	t.Parallel()
	b := open(t, postgres, outbox.Config{})
	grants := b.holder()
	before := b.passing(grants, "1")
	const insert = `INSERT INTO millrace_outbox (id, lane, topic, payload) VALUES ('late', 0, 'late', '')`
	first, err := b.raw.BeginTx(t.Context(), nil)
	require.NoError(t, err)
	defer first.Rollback()
	_, err = first.ExecContext(t.Context(), insert)
	require.NoError(t, err)
	second, err := b.raw.BeginTx(t.Context(), nil)
	require.NoError(t, err)
	defer second.Rollback()
	done := make(chan error, 1)
	go func() {
		_, err := second.ExecContext(t.Context(), insert+` ON CONFLICT (id) DO NOTHING`)
		done <- err
	}()
	testenv.Eventually(t, 30*time.Second, "the second writer waits", func() bool { return b.waiters() > 0 })
	b.passing(grants, "2", "3", "4")
	require.LessOrEqual(t, outbox.Raise(t.Context(), b.box.Store()), before)
	require.NoError(t, first.Rollback())
	require.NoError(t, <-done)
	for range 5 {
		require.LessOrEqual(t, outbox.Raise(t.Context(), b.box.Store()), before)
	}
	require.NoError(t, second.Commit())
	rows := b.read("late")
	require.Len(t, rows, 1)
	require.Equal(t, before+2, rows[0].Pos)
}

func TestTheBoundWaitsForAPreparedTransactionAlsoAcrossARestart(t *testing.T) {
	t.Parallel()
	server, b := ownServer(t)
	grants := b.holder()
	before := b.passing(grants, "1", "2")
	conn, err := b.raw.Conn(t.Context())
	require.NoError(t, err)
	exec := func(query string) {
		_, err := conn.ExecContext(t.Context(), query)
		require.NoError(t, err, query)
	}
	exec(`BEGIN`)
	exec(`INSERT INTO millrace_outbox (id, lane, topic, payload) VALUES ('late', 0, 'late', '')`)
	last := b.passing(grants, "3", "4", "5")
	notPast := func() {
		t.Helper()
		for range 3 {
			require.LessOrEqual(t, outbox.Raise(t.Context(), b.box.Store()), before)
		}
	}
	notPast()
	exec(`PREPARE TRANSACTION 'late'`)
	require.NoError(t, conn.Close())
	notPast()
	server.Restart()
	notPast()
	checked, log := logged(t, postgres, server.URL)
	require.NoError(t, checked.box.Check(t.Context()))
	require.Empty(t, log.String(), "one that is young is nothing to worry about")
	checked.box.PreparedAge(time.Microsecond)
	require.NoError(t, checked.box.Check(t.Context()))
	require.Contains(t, log.String(), "transactions prepared more than")
	b.exec(`COMMIT PREPARED 'late'`)
	for range 3 {
		outbox.Raise(t.Context(), b.box.Store())
	}
	rows := b.read("late")
	require.Len(t, rows, 1)
	_, err = b.box.Store().Settle(t.Context(), grants, []outbox.Ref{rows[0].Ref})
	require.NoError(t, err)
	b.raise(last)
}

func TestIdleReadsTakeNoTransactionID(t *testing.T) {
	t.Parallel()
	_, b := ownServer(t)
	grants := b.holder()
	b.raise(b.passing(grants, "1"))
	next := func() int64 { return b.one(`SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint`) }
	before := next()
	for range 10 {
		b.read("passing")
		outbox.Raise(t.Context(), b.box.Store())
		_, err := b.box.Store().Topics(t.Context())
		require.NoError(t, err)
		_, err = b.box.Store().Promote(t.Context(), grants)
		require.NoError(t, err)
	}
	require.Equal(t, before, next())
}

var buffers = regexp.MustCompile(`Buffers: shared(?: hit=(\d+))?(?: read=(\d+))?`)

// cost is how many blocks a statement looks at.
func (b *bench) cost(statement, args string) (blocks int) {
	b.Helper()
	conn, err := b.raw.Conn(b.Context())
	require.NoError(b, err)
	defer conn.Close()
	_, err = conn.ExecContext(b.Context(), `PREPARE statement AS `+statement)
	require.NoError(b, err)
	rows, err := conn.QueryContext(b.Context(), `EXPLAIN (ANALYZE, BUFFERS) EXECUTE statement`+args)
	require.NoError(b, err)
	plan := strings.Join(texts(b.T, rows), "\n")
	match := buffers.FindStringSubmatch(plan)
	require.NotNil(b, match, plan)
	_, err = conn.ExecContext(b.Context(), `DEALLOCATE statement`)
	require.NoError(b, err)
	for _, n := range match[1:] {
		more, _ := strconv.Atoi(n)
		blocks += more
	}
	return blocks
}

func TestAnIdlePollDoesNotWalkOverDeletedRowsThatCannotBeVacuumed(t *testing.T) {
	t.Parallel()
	n := 20000
	if testenv.Full() {
		n = 200000
	}
	b := open(t, postgres, outbox.Config{})
	grants := b.holder()
	old, err := b.raw.BeginTx(t.Context(), &sql.TxOptions{Isolation: sql.LevelRepeatableRead})
	require.NoError(t, err)
	defer old.Rollback()
	_, err = old.ExecContext(t.Context(), `SELECT 1`)
	require.NoError(t, err)
	b.backlog("busy", n)
	b.exec(`DELETE FROM millrace_outbox`)

	poll := func(bound int64) (read, topics int) {
		return b.cost(outbox.ReadStatement("busy", bound)), b.cost(outbox.TopicsStatement(bound))
	}
	read, topics := poll(0)
	require.Greater(t, read, n/4, "else this test shows nothing")
	require.Greater(t, topics, n/4)
	b.raise(int64(n))
	read, topics = poll(int64(n))
	t.Log("blocks of a read and of a look for topics:", read, topics)
	require.Less(t, read, 64*6)
	require.Less(t, topics, 20)

	b.passing(grants, "after")
	waiting := b.insert(outboxtest.Entry{ID: "new", Topic: "new"})[0]
	b.raise(waiting - 1)
	found, err := b.box.Store().Topics(t.Context())
	require.NoError(t, err)
	require.Equal(t, []string{"new"}, found.Ready)
	require.Len(t, b.read("new"), 1)
	_, topics = poll(waiting - 1)
	require.Less(t, topics, 20)
}

func TestTopicsBehindManyRowsAreFoundAboveABound(t *testing.T) {
	b := open(t, postgres, outbox.Config{})
	b.raise(b.passing(b.holder(), "1"))
	b.backlog("a", 1500)
	b.backlog("b", 1)
	topics, err := b.box.Store().Topics(t.Context())
	require.NoError(t, err)
	require.Equal(t, []string{"a", "b"}, topics.Ready)
}

func TestWhatBecomesReadyBelowTheBoundIsReadAtOnce(t *testing.T) {
	t.Parallel()
	b := open(t, postgres, outbox.Config{})
	store, ctx := b.box.Store(), t.Context()
	grants := b.holder()
	g := grants[outbox.Lane("k")]
	pos := b.insert(
		outboxtest.Entry{ID: "delayed", Topic: "t", Key: "k", Delay: time.Microsecond},
		outboxtest.Entry{ID: "refused", Topic: "t", Key: "k"},
		outboxtest.Entry{ID: "held", Topic: "t", Key: "k"})
	refuse := func() {
		ok, err := store.Refuse(ctx, g, outbox.Refused{Ref: outbox.Ref{Pos: pos[1], ID: "refused"}, Destination: "d", Key: "k", Attempt: 1, Stop: true, RetryIn: time.Hour})
		require.NoError(t, err)
		require.True(t, ok)
		ok, err = store.Hold(ctx, g, "d", []outbox.Ref{{Pos: pos[2], ID: "held"}})
		require.NoError(t, err)
		require.True(t, ok)
	}
	refuse()
	pass := 0
	steps := map[string]func() (string, error){
		"promote": func() (string, error) {
			_, err := store.Promote(ctx, grants)
			return "delayed", err
		},
		"lift": func() (string, error) {
			_, err := store.Lift(ctx, g, "d", "k")
			return "held", err
		},
		"park": func() (string, error) {
			_, err := store.Park(ctx, g, outbox.Refused{Ref: outbox.Ref{Pos: pos[1], ID: "refused"}, Destination: "d", Key: "k", Attempt: 2, Reason: "r"})
			return "held", err
		},
	}
	for _, name := range []string{"promote", "lift", "park"} {
		if name == "park" {
			refuse()
		}
		pass++
		last := b.passing(grants, fmt.Sprint("passing", pass))
		b.raise(last)
		want, err := steps[name]()
		require.NoError(t, err, name)
		var got []string
		for _, r := range b.read("t") {
			got = append(got, r.ID)
		}
		require.Contains(t, got, want, name)
		if name == "promote" {
			b.exec(`DELETE FROM millrace_outbox WHERE id = 'delayed'`)
		}
	}
}

func TestAReadDuringWhichARowBelowTheBoundBecameReadyIsMadeAgain(t *testing.T) {
	b := open(t, postgres, outbox.Config{})
	grants := b.holder()
	held := b.insert(outboxtest.Entry{ID: "held", Topic: "t", Delay: time.Hour})[0]
	b.raise(b.passing(grants, "1"))
	b.insert(outboxtest.Entry{ID: "later", Topic: "t"})
	lift, err := b.raw.BeginTx(t.Context(), nil)
	require.NoError(t, err)
	defer lift.Rollback()
	_, err = lift.ExecContext(t.Context(), `LOCK TABLE millrace_outbox`)
	require.NoError(t, err)
	answer := make(chan []outbox.Row, 1)
	lanes := []int{0}
	go func() {
		rows, _ := b.box.Store().Read(t.Context(), outbox.Read{Lanes: lanes, Topics: []string{"t"}, MaxRows: 10, MaxBytes: 1000})
		answer <- rows
	}()
	testenv.Eventually(t, 30*time.Second, "the read waits", func() bool { return b.waiters() > 0 })
	done := outbox.Lower(b.box.Store())
	_, err = lift.ExecContext(t.Context(), `UPDATE millrace_outbox SET ready = true, due_at = NULL WHERE id = 'held'`)
	require.NoError(t, err)
	require.NoError(t, lift.Commit())
	done(nil)
	rows := <-answer
	require.Len(t, rows, 2)
	require.Equal(t, held, rows[0].Pos)
}

func TestAClaimForgetsTheBound(t *testing.T) {
	b := open(t, postgres, outbox.Config{})
	grants := b.holder()
	b.raise(b.passing(grants, "1", "2"))
	require.NoError(t, b.box.Store().Release(t.Context(), grants[:1]))
	outbox.Later(b.box.Store(), -time.Hour)
	// Another holder makes a row of the lane ready that is below.
	b.exec(`INSERT INTO millrace_outbox (pos, id, lane, topic, payload) OVERRIDING SYSTEM VALUE VALUES (1, 'below', 0, 't', '')`)
	require.Empty(t, b.read("t"), "else this test shows nothing")
	got, err := b.box.Store().Claim(t.Context(), "holder", 1)
	require.NoError(t, err)
	require.Len(t, got, 1)
	require.Len(t, b.read("t"), 1)
}

func TestTheBoundIsProvedFromTheBottomFromTimeToTime(t *testing.T) {
	b := open(t, postgres, outbox.Config{})
	last := b.passing(b.holder(), "1", "2")
	b.raise(last)
	b.exec(`INSERT INTO millrace_outbox (pos, id, lane, topic, payload) OVERRIDING SYSTEM VALUE VALUES (1, 'below', 0, 't', '')`)
	outbox.Later(b.box.Store(), -time.Hour) // it was proved just now, however slow this machine is
	require.Equal(t, last, outbox.Raise(t.Context(), b.box.Store()))
	require.Empty(t, b.read("t"))
	outbox.Distrust(b.box.Store())
	b.raise(0)
	require.Len(t, b.read("t"), 1)
}

func TestTheBoundIsForgottenWhenPositionsAreDrawnAgain(t *testing.T) {
	b := open(t, postgres, outbox.Config{})
	b.raise(b.passing(b.holder(), "1", "2", "3"))
	b.exec(`ALTER TABLE millrace_outbox ALTER COLUMN pos RESTART WITH 1`)
	b.insert(outboxtest.Entry{ID: "again", Topic: "t"})
	require.Zero(t, outbox.Raise(t.Context(), b.box.Store()))
	require.Len(t, b.read("t"), 1)
}
