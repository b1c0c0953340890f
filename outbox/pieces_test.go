package outbox_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/outbox"
	"github.com/millrace-go/millrace/outbox/outboxtest"
)

// stoppedKey is an outbox with a message that has stopped its key, and n messages that are held behind it.
func stoppedKey(t *testing.T, back backend, n int) (b *bench, g outbox.Grant, first outbox.Refused) {
	t.Helper()
	b = open(t, back, outbox.Config{})
	g = b.holding()[outbox.Lane("k")]
	pos := b.insert(outboxtest.Entry{ID: "first", Topic: "t", Key: "k"})
	first = outbox.Refused{Ref: outbox.Ref{Pos: pos[0], ID: "first"}, Destination: "d", Key: "k", Attempt: 1, Stop: true, RetryIn: time.Hour}
	ok, err := b.box.Store().Refuse(t.Context(), g, first)
	require.NoError(t, err)
	require.True(t, ok)
	series := fmt.Sprintf(`generate_series(1, %d) AS seq`, n)
	no := "false"
	if back.driver == "mysql" {
		series, no = fmt.Sprintf(`seq_1_to_%d`, n), "0"
	}
	b.exec(fmt.Sprintf(`INSERT INTO millrace_outbox (id, lane, topic, order_key, ready, held, payload, metadata, created_at)
		SELECT concat('held', seq), %d, 't', 'k', %s, 'd', '', '{}', %s FROM %s`, g.Lane, no, b.in(0), series))
	return b, g, first
}

// watch counts how many rows each statement changes from now on.
func (b *bench) watch() (most func() int64) {
	b.Helper()
	if b.driver == "mysql" {
		b.exec(`CREATE TABLE changed (at DATETIME(6) NOT NULL, KEY (at))`)
		b.exec(`CREATE TRIGGER watch AFTER UPDATE ON millrace_outbox FOR EACH ROW INSERT INTO changed VALUES (UTC_TIMESTAMP(6))`)
	} else {
		b.exec(`CREATE TABLE changed (at timestamptz NOT NULL)`)
		b.exec(`CREATE FUNCTION watch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO changed VALUES (statement_timestamp()); RETURN NULL; END'`)
		b.exec(`CREATE TRIGGER watch AFTER UPDATE ON millrace_outbox FOR EACH ROW EXECUTE FUNCTION watch()`)
	}
	return func() int64 {
		b.Helper()
		return b.one(`SELECT max(n) FROM (SELECT count(*) AS n FROM changed GROUP BY at) AS statements`)
	}
}

const mostChanged = 1000

func TestALargeStoppedKeyIsSetFreeByStatementsThatChangeABoundedNumberOfRows(t *testing.T) {
	n := int64(3500)
	if testenv.Full() {
		n = 20_000
	}
	for _, back := range []backend{postgresPool, mariadb} {
		for _, how := range []string{"lift", "park"} {
			t.Run(back.name+" "+how, func(t *testing.T) {
				t.Parallel()
				b, g, first := stoppedKey(t, back, int(n))
				most := b.watch()
				ok, err := b.box.Store().Lift(t.Context(), g, "d", "k")
				if how == "park" {
					ok, err = b.box.Store().Park(t.Context(), g, first)
				}
				require.NoError(t, err)
				require.True(t, ok)
				require.EqualValues(t, mostChanged, most())
				require.Zero(t, b.one(`SELECT count(*) FROM millrace_outbox WHERE held IS NOT NULL`))
				require.Zero(t, b.one(`SELECT count(*) FROM millrace_stops`))
			})
		}
	}
}

// What is free is the lowest, and the stop is there as long as anything is held: whoever takes the lane over knows of it.
func TestAKeyThatIsSetFreeInPartIsStoppedYet(t *testing.T) {
	const n = mostChanged + 500
	for _, back := range []backend{postgresPool, mariadb} {
		t.Run(back.name, func(t *testing.T) {
			t.Parallel()
			b, g, first := stoppedKey(t, back, n)
			unlock := b.lock(b.one(`SELECT max(pos) FROM millrace_outbox`))
			free := func() int64 {
				return b.one(`SELECT count(*) FROM millrace_outbox WHERE held IS NULL AND due_at IS NULL AND pos <= (SELECT min(pos) FROM millrace_outbox) + 1000`)
			}
			_, err := b.box.Store().Lift(t.Context(), g, "d", "k")
			require.Error(t, err)
			require.EqualValues(t, mostChanged, free())
			_, err = b.box.Store().Park(t.Context(), g, first)
			require.Error(t, err)
			require.Zero(t, b.one(`SELECT count(*) FROM millrace_dead`))

			require.EqualValues(t, 500, b.one(`SELECT count(*) FROM millrace_outbox WHERE held IS NOT NULL`))
			stops, err := b.box.Store().Stops(t.Context(), []int{g.Lane})
			require.NoError(t, err)
			require.Equal(t, []outbox.Stop{{Lane: g.Lane, Destination: "d", Key: "k", Pos: first.Pos}}, stops)
			p, err := b.box.Store().Promote(t.Context(), []outbox.Grant{g})
			require.NoError(t, err)
			require.Zero(t, p.Ready)

			unlock()
			ok, err := b.box.Store().Park(t.Context(), g, first)
			require.NoError(t, err)
			require.True(t, ok)
			require.EqualValues(t, n, b.one(`SELECT count(*) FROM millrace_outbox WHERE held IS NULL AND due_at IS NULL`))
			require.Zero(t, b.one(`SELECT count(*) FROM millrace_stops`))
			require.EqualValues(t, 1, b.one(`SELECT count(*) FROM millrace_dead`))
		})
	}
}

// A step finds its rows in the index of what is held, instead of walking over all that was set free before: which the planner
// prefers if it believes that nearly everything is held.
func TestAStepThatSetsAKeyFreeLooksOnlyAtItsRows(t *testing.T) {
	for _, step := range []string{"lift", "park"} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			b, g, first := stoppedKey(t, postgres, 40*mostChanged)
			b.exec(`ANALYZE millrace_outbox`)
			b.exec(fmt.Sprintf(`UPDATE millrace_outbox SET ready = true, held = NULL WHERE held IS NOT NULL AND pos <= %d`, 35*mostChanged))
			b.exec(`VACUUM millrace_outbox`)
			text, _, _ := strings.Cut(outbox.PostgresStatements()[step], "\x00")
			args := fmt.Sprintf(`(%d, %d, 'd', 'k')`, g.Lane, g.Epoch)
			if step == "park" {
				args = fmt.Sprintf(`(%d, %d, %d, 'first', 'd', 'r', 'e', 1)`, g.Lane, g.Epoch, first.Pos)
			}
			blocks := b.cost(text, args)
			t.Logf("blocks in which a step finds the %d of %d rows that it sets free: %d", mostChanged, 40*mostChanged, blocks)
			require.Less(t, blocks, mostChanged)
		})
	}
}
