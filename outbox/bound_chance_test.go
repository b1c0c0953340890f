package outbox_test

import (
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/outbox"
)

// TestAReadBringsWhatOneFromTheBottomWould does at random what moves rows, and reads with what happens to be in
// flight; each answer is compared with the rows of the table.
func TestAReadBringsWhatOneFromTheBottomWould(t *testing.T) {
	seeds, steps := 4, 150
	if testenv.Full() {
		seeds, steps = 100, 500
	}
	for seed := range seeds {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			b := open(t, postgres, outbox.Config{})
			c := &chance{bench: b, grants: b.holder(), rand: rand.New(rand.NewPCG(uint64(seed), 0)), rows: map[int64]outbox.Row{}}
			for range steps {
				c.step()
			}
			require.NotZero(t, c.above, "no read began above anything")
			t.Log("reads:", c.reads, "that began above something:", c.above)
		})
	}
}

type chance struct {
	*bench
	grants []outbox.Grant
	rand   *rand.Rand
	rows   map[int64]outbox.Row // in flight
	late   []*sql.Tx
	n      int

	reads, above int
}

var chanceTopics = []string{"a", "b", "c"}

func (c *chance) step() {
	c.Helper()
	switch n := c.rand.IntN(100); {
	case n < 15:
		c.write(c.raw.ExecContext)
	case n < 20 && len(c.late) < 3:
		tx, err := c.raw.BeginTx(c.Context(), nil)
		require.NoError(c, err)
		c.Cleanup(func() { _ = tx.Rollback() })
		c.write(tx.ExecContext)
		c.late = append(c.late, tx)
	case n < 30 && len(c.late) > 0:
		i := c.rand.IntN(len(c.late))
		if c.rand.IntN(4) == 0 {
			require.NoError(c, c.late[i].Rollback())
		} else {
			require.NoError(c, c.late[i].Commit())
		}
		c.late = slices.Delete(c.late, i, i+1)
	case n < 45:
		outbox.Raise(c.Context(), c.box.Store())
	case n < 75:
		c.read()
	case n < 85:
		c.settle()
	case n < 89:
		for pos := range c.rows { // given up
			if c.rand.IntN(3) == 0 {
				delete(c.rows, pos)
			}
		}
	case n < 94:
		c.refuse()
	case n < 97:
		_, err := c.box.Store().Promote(c.Context(), c.grants)
		require.NoError(c, err)
	default:
		c.lift()
	}
}

// write inserts some rows, a few of them delayed.
func (c *chance) write(exec func(context.Context, string, ...any) (sql.Result, error)) {
	c.Helper()
	for range 1 + c.rand.IntN(8) {
		c.n++
		lane, key := c.rand.IntN(4), c.rand.IntN(3)
		size := 10
		if c.rand.IntN(4) == 0 {
			size = 40
		}
		ready, due := "true", "NULL"
		if c.rand.IntN(6) == 0 {
			ready, due = "false", "clock_timestamp() + interval '10 ms'"
		}
		_, err := exec(c.Context(), fmt.Sprintf(`INSERT INTO millrace_outbox (id, lane, topic, order_key, ready, due_at, payload, size) VALUES ('m%d', %d, '%s', 'k%d', %s, %s, '', %d)`,
			c.n, lane, chanceTopics[c.rand.IntN(len(chanceTopics))], key, ready, due, size))
		require.NoError(c, err)
	}
}

func (c *chance) read() {
	c.Helper()
	q := outbox.Read{MaxRows: []int{3, 40, 10000}[c.rand.IntN(3)], MaxBytes: []int{45, 120, 1 << 20}[c.rand.IntN(3)]}
	all := c.rand.IntN(2) == 0 // then it goes along the table
	for lane := range outbox.Lanes {
		if all || lane < 4 && c.rand.IntN(4) > 0 {
			q.Lanes = append(q.Lanes, lane)
		}
	}
	for _, topic := range chanceTopics {
		if all || c.rand.IntN(3) > 0 {
			q.Topics = append(q.Topics, topic)
		}
	}
	if c.rand.IntN(5) == 0 {
		q.BusyKeys = []string{"k1"}
	}
	if len(q.Lanes) == 0 || len(q.Topics) == 0 {
		return
	}
	for pos, row := range c.rows { // of another destination's messages a read knows nothing
		if slices.Contains(q.Topics, row.Topic) {
			q.Exclude = append(q.Exclude, pos)
		}
	}
	if all && c.rand.IntN(2) == 0 {
		outbox.TryNext(c.box.Store(), q.Topics)
	}
	c.reads++
	for _, lane := range q.Lanes {
		if outbox.Reach(c.box.Store(), lane, q.Topics[0]) > 0 {
			c.above++
			break
		}
	}
	got, err := c.box.Store().Read(c.Context(), q)
	require.NoError(c, err)
	want := c.fromBottom(q)
	for _, row := range got {
		require.Contains(c, want, row.Pos)
		c.rows[row.Pos] = row
	}
	if q.MaxBytes > 1000 {
		require.Len(c, got, min(len(want), q.MaxRows))
	} else if len(want) > 0 {
		require.NotEmpty(c, got)
	}
}

// fromBottom are the positions of what there is to read.
func (c *chance) fromBottom(q outbox.Read) (positions []int64) {
	c.Helper()
	rows, err := c.raw.QueryContext(c.Context(), `SELECT pos, lane, topic, order_key FROM millrace_outbox WHERE ready ORDER BY pos`)
	require.NoError(c, err)
	defer rows.Close()
	for rows.Next() {
		var pos int64
		var lane int
		var topic, key string
		require.NoError(c, rows.Scan(&pos, &lane, &topic, &key))
		if slices.Contains(q.Lanes, lane) && slices.Contains(q.Topics, topic) && !slices.Contains(q.Exclude, pos) && !slices.Contains(q.BusyKeys, key) {
			positions = append(positions, pos)
		}
	}
	require.NoError(c, rows.Err())
	return positions
}

func (c *chance) settle() {
	c.Helper()
	var refs []outbox.Ref
	for _, row := range c.rows {
		if c.rand.IntN(2) == 0 {
			refs = append(refs, row.Ref)
		}
	}
	settled, err := c.box.Store().Settle(c.Context(), c.grants, refs)
	require.NoError(c, err)
	for _, pos := range slices.Concat(settled.Done, settled.Gone) {
		delete(c.rows, pos)
	}
}

// refuse stops the key of a message that is in flight, and holds those behind it.
func (c *chance) refuse() {
	c.Helper()
	for pos, row := range c.rows {
		g := c.grant(row.Lane)
		f := outbox.Refused{Ref: row.Ref, Destination: "d", Key: row.Key, Attempt: 1, RetryIn: 5 * time.Millisecond, Stop: c.rand.IntN(2) == 0}
		_, err := c.box.Store().Refuse(c.Context(), g, f)
		require.NoError(c, err)
		delete(c.rows, pos)
		var behind []outbox.Ref
		for _, other := range c.rows {
			if other.Lane == row.Lane {
				behind = append(behind, other.Ref)
			}
		}
		_, err = c.box.Store().Hold(c.Context(), g, "d", behind)
		require.NoError(c, err)
		for _, ref := range behind {
			delete(c.rows, ref.Pos)
		}
		return
	}
}

func (c *chance) lift() {
	c.Helper()
	lane, key := c.rand.IntN(4), fmt.Sprint("k", c.rand.IntN(3))
	if c.rand.IntN(2) == 0 {
		_, err := c.box.Store().Lift(c.Context(), c.grant(lane), "d", key)
		require.NoError(c, err)
		return
	}
	for pos, row := range c.rows {
		_, err := c.box.Store().Park(c.Context(), c.grant(row.Lane), outbox.Refused{Ref: row.Ref, Destination: "d", Key: row.Key, Attempt: 1, Reason: "r"})
		require.NoError(c, err)
		delete(c.rows, pos)
		return
	}
}

func (c *chance) grant(lane int) outbox.Grant {
	return c.grants[slices.IndexFunc(c.grants, func(g outbox.Grant) bool { return g.Lane == lane })]
}
