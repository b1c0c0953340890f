package outbox_test

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/outbox"
)

// allLanes asks for the lowest rows of a topic, whatever their lane.
func allLanes(topic string, rows int) outbox.Read {
	q := outbox.Read{Topics: []string{topic}, MaxRows: rows, MaxBytes: 4 << 20}
	for lane := range outbox.Lanes {
		q.Lanes = append(q.Lanes, lane)
	}
	return q
}

func TestAReadAlongTheTableBringsWhatOneLaneByLaneBrings(t *testing.T) {
	t.Parallel()
	for _, back := range []backend{postgresPool, postgres} {
		b := open(t, back, outbox.Config{})
		b.holder()
		seed := rand.Uint64()
		random := rand.New(rand.NewPCG(seed, 0))
		ways := [2]int{}
		for range 60 {
			mixed := random.IntN(3) > 0 // else all is wanted
			share := 0.0
			if mixed {
				share = random.Float64() / 2
			}
			b.exec(`DELETE FROM millrace_outbox`)
			b.exec(fmt.Sprintf(`INSERT INTO millrace_outbox (id, lane, topic, order_key, payload, size, ready, due_at, metadata)
				SELECT 'm' || n, floor(random() * 64), CASE WHEN random() < %[1]f THEN 'a' ELSE 'b' END,
					CASE WHEN random() < 0.3 THEN 'k' || floor(random() * 3) ELSE '' END, '\x01', floor(random() * 100), u >= %[1]f,
					CASE WHEN u < %[1]f THEN now() + interval '1 hour' END, '{"n":"' || n || '"}'
				FROM (SELECT n, random() AS u FROM generate_series(1, 400) n) rows`, share))
			q := outbox.Read{Topics: []string{"a", "b"}, MaxRows: 1 + random.IntN(300), MaxBytes: 1 + random.IntN(10000)}
			for lane := range outbox.Lanes {
				if !mixed || random.IntN(20) > 0 {
					q.Lanes = append(q.Lanes, lane)
				}
			}
			if mixed {
				q.Topics = q.Topics[:1+random.IntN(2)]
			}
			if mixed && random.IntN(2) == 0 {
				q.BusyKeys = []string{"k1", "nobody's"}
			}
			first := b.one(`SELECT min(pos) FROM millrace_outbox`)
			for range random.IntN(100) {
				q.Exclude = append(q.Exclude, first+random.Int64N(400))
			}
			next, along, lanes, err := outbox.ReadEachWay(t.Context(), b.box.Store(), q)
			require.NoError(t, err)
			for i, rows := range [][]outbox.Row{next, along} {
				if rows != nil {
					ways[i]++
					require.Equal(t, lanes, rows, "seed %d, %+v", seed, q)
				}
			}
		}
		require.Greater(t, ways[0], 10, "else this test shows nothing")
		require.Greater(t, ways[1], 20, "else this test shows nothing")
	}
}

// Whatever stands in front: at most a few rows are looked at in vain, and the next reads do not try again.
func TestAReadGoesLaneByLaneWhereTheTableHoldsLittleOfWhatItWants(t *testing.T) {
	t.Parallel()
	b := open(t, postgresPool, outbox.Config{})
	b.holder()
	b.backlog("other", 2000)
	b.backlog("later", 2000, "ready, due_at", "false, now() + interval '1 hour'")
	b.backlog("t", 200)
	q := allLanes("t", 100)
	next, along, lanes, err := outbox.ReadEachWay(t.Context(), b.box.Store(), q)
	require.NoError(t, err)
	require.Nil(t, next)
	require.Nil(t, along)
	require.Len(t, lanes, 100)
	resting, _ := outbox.Resting(b.box.Store())
	require.Positive(t, resting)

	rows, err := b.box.Store().Read(t.Context(), allLanes("other", 100))
	require.NoError(t, err)
	require.Len(t, rows, 100)
	less, _ := outbox.Resting(b.box.Store())
	require.Less(t, less, resting, "after some reads it is tried again")
}

// Rows are read uncounted where all of them fit by the size of the last ones. Where they do not, what is too much is not held, and the
// next reads have the server count.
func TestAReadHoldsNoMoreThanItMayWhereMessagesTurnOutLarger(t *testing.T) {
	t.Parallel()
	b := open(t, postgresPool, outbox.Config{})
	b.holder()
	store := b.box.Store()
	read := func(maxBytes int) []outbox.Row {
		q := allLanes("t", 10)
		q.MaxBytes = maxBytes
		rows, err := store.Read(t.Context(), q)
		require.NoError(t, err)
		return rows
	}
	b.backlog("t", 20)
	require.Len(t, read(1000), 10)
	require.Zero(t, outbox.Counted(store, "t"))
	require.Len(t, read(250), 2, "by what the last ones had, these do not fit: they are counted")
	require.Zero(t, outbox.Counted(store, "t"))

	b.exec(`UPDATE millrace_outbox SET size = 1000 WHERE pos > (SELECT min(pos) + 1 FROM millrace_outbox)`)
	rows := read(2200)
	require.Len(t, rows, 4)
	require.Equal(t, 2200, rows[0].Size+rows[1].Size+rows[2].Size+rows[3].Size)
	require.Positive(t, outbox.Counted(store, "t"), "what was thrown away is not to be sent each time")
	require.Len(t, read(1), 1, "one comes whatever it has")
}

func TestASettleOfMessagesThatAreKeptDoesNotTryInVainEachTime(t *testing.T) {
	t.Parallel()
	b := open(t, postgresPool, outbox.Config{})
	grants := b.holder()
	b.backlog("kept", 10, "keep, keep_us", "1, 3600000000")
	b.backlog("plain", 10)
	settle := func(topic string) {
		rows, err := b.box.Store().Read(t.Context(), allLanes(topic, 5))
		require.NoError(t, err)
		require.Len(t, rows, 5)
		var refs []outbox.Ref
		for _, r := range rows {
			refs = append(refs, r.Ref)
		}
		s, err := b.box.Store().Settle(t.Context(), grants, refs)
		require.NoError(t, err)
		require.Len(t, s.Done, 5)
		require.Empty(t, s.Gone)
		require.Empty(t, s.Lost)
	}
	settle("plain")
	_, resting := outbox.Resting(b.box.Store())
	require.Zero(t, resting)
	settle("kept")
	_, resting = outbox.Resting(b.box.Store())
	require.Positive(t, resting)
	settle("plain")
	settle("kept")
	require.EqualValues(t, 10, b.one(`SELECT count(*) FROM millrace_sent`))
	require.Zero(t, b.count())
}
