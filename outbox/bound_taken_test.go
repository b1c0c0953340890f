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

// taker reads one lane and topic, as a forwarder does that has some of it in flight.
type taker struct {
	*bench
	grants   []outbox.Grant
	inFlight []int64
}

func newTaker(t *testing.T) *taker {
	t.Helper()
	b := open(t, postgres, outbox.Config{})
	return &taker{bench: b, grants: b.holder()}
}

// take reads, and returns what is new.
func (r *taker) take(more ...string) (ids []string) {
	r.Helper()
	rows, err := r.box.Store().Read(r.Context(), outbox.Read{
		Lanes: []int{0}, Topics: append(more, "t"), Exclude: r.inFlight, MaxRows: 100, MaxBytes: 1 << 20,
	})
	require.NoError(r, err)
	for _, row := range rows {
		ids = append(ids, row.ID)
		r.inFlight = append(r.inFlight, row.Pos)
	}
	return ids
}

// reached makes sure that the next read begins above a position, else the test would show nothing.
func (r *taker) reached(pos int64) {
	r.Helper()
	testenv.Eventually(r, 30*time.Second, fmt.Sprintf("reads begin above %d", pos), func() bool {
		outbox.Raise(r.Context(), r.box.Store())
		require.Empty(r, r.take())
		return outbox.Reach(r.box.Store(), 0, "t") >= pos
	})
}

func (r *taker) add(ids ...string) (positions []int64) {
	r.Helper()
	for _, id := range ids {
		positions = append(positions, r.insert(outboxtest.Entry{ID: id, Topic: "t"})...)
	}
	return positions
}

func TestAReadBeginsAboveWhatIsInFlight(t *testing.T) {
	t.Parallel()
	r := newTaker(t)
	pos := r.add("1", "2", "3")
	require.Equal(t, []string{"1", "2", "3"}, r.take())
	r.reached(pos[2])
	r.add("4")
	require.Equal(t, []string{"4"}, r.take())
}

func TestAReadDoesNotBeginAboveAWriterThatIsUnderWay(t *testing.T) {
	t.Parallel()
	r := newTaker(t)
	before := r.add("1")[0]
	require.Equal(t, []string{"1"}, r.take())
	r.exec(`CREATE TABLE other (n int)`)
	writers := map[string]func() (commit func()){
		"with a transaction id": func() func() {
			tx, err := r.raw.BeginTx(t.Context(), nil)
			require.NoError(t, err)
			t.Cleanup(func() { _ = tx.Rollback() })
			_, err = tx.ExecContext(t.Context(), `INSERT INTO millrace_outbox (id, lane, topic, payload) VALUES ('written', 0, 't', '')`)
			require.NoError(t, err)
			return func() { require.NoError(t, tx.Commit()) }
		},
		"without one": func() func() {
			goOn, done := r.lateWriter()
			return func() {
				goOn()
				require.NoError(t, <-done)
				r.exec(`UPDATE millrace_outbox SET topic = 't', id = 'written' WHERE topic = 'late'`)
			}
		},
	}
	for name, write := range writers {
		commit := write()
		r.add(name+"2", name+"3")
		for range 3 {
			r.take()
			outbox.Raise(t.Context(), r.box.Store())
			require.LessOrEqual(t, outbox.Reach(r.box.Store(), 0, "t"), before, name)
		}
		commit()
		require.Equal(t, []string{"written"}, r.take(), name)
		last := r.add(name + "last")[0]
		r.take()
		r.reached(last)
		before = last
		r.exec(`UPDATE millrace_outbox SET id = id || pos WHERE id = 'written'`)
	}
}

func TestWhatBecomesReadyBelowWhatIsInFlightIsReadAtOnce(t *testing.T) {
	t.Parallel()
	r := newTaker(t)
	store, ctx, key := r.box.Store(), t.Context(), "k12" // a key of lane 0
	for i := 0; outbox.Lane(key) != 0; i++ {
		key = fmt.Sprint("k", i)
	}
	g := r.grants[slices.IndexFunc(r.grants, func(g outbox.Grant) bool { return g.Lane == 0 })]
	refused := r.insert(outboxtest.Entry{ID: "refused", Topic: "t", Key: key})[0]
	held := r.insert(outboxtest.Entry{ID: "held", Topic: "t", Key: key})[0]
	r.insert(outboxtest.Entry{ID: "delayed", Topic: "t", Delay: time.Microsecond})
	refuse := func(f outbox.Refused) {
		t.Helper()
		ok, err := store.Refuse(ctx, g, f)
		require.NoError(t, err)
		require.True(t, ok)
	}
	stopped := outbox.Refused{Ref: outbox.Ref{Pos: refused, ID: "refused"}, Destination: "d", Key: key, Attempt: 1, Stop: true, RetryIn: time.Hour}
	stop := func() {
		t.Helper()
		refuse(stopped)
		ok, err := store.Hold(ctx, g, "d", []outbox.Ref{{Pos: held, ID: "held"}})
		require.NoError(t, err)
		require.True(t, ok)
		r.inFlight = slices.DeleteFunc(r.inFlight, func(pos int64) bool { return pos == held })
	}
	stop()
	last := r.add("1", "2")[1]
	require.Equal(t, []string{"1", "2"}, r.take())

	r.reached(last)
	_, err := store.Promote(ctx, r.grants)
	require.NoError(t, err)
	require.Equal(t, []string{"delayed"}, r.take(), "promoted")

	r.reached(last)
	_, err = store.Lift(ctx, g, "d", key)
	require.NoError(t, err)
	require.Equal(t, []string{"held"}, r.take(), "lifted")

	stop()
	r.reached(last)
	_, err = store.Park(ctx, g, outbox.Refused{Ref: stopped.Ref, Destination: "d", Key: key, Attempt: 2, Reason: "r"})
	require.NoError(t, err)
	require.Equal(t, []string{"held"}, r.take(), "parked")

	replayed, err := r.box.Replay(ctx, by, outbox.Filter{IDs: []string{"refused"}}, outbox.Bulk{})
	require.NoError(t, err)
	require.EqualValues(t, 1, replayed.Done)
	require.Equal(t, []string{"refused"}, r.take(), "replayed")
}

func TestAMessageThatIsNotInFlightAnyMoreIsReadAgain(t *testing.T) {
	t.Parallel()
	r := newTaker(t)
	pos := r.add("1", "2", "3", "4")
	r.take()
	r.reached(pos[3])
	r.inFlight = []int64{pos[0], pos[2], pos[3]} // the publish of 2 was given up
	require.Equal(t, []string{"2"}, r.take())
	r.reached(pos[3])

	r.exec(`INSERT INTO millrace_pauses (kind, name, who, why) VALUES ('topic', 't', 'w', 'y')`)
	r.inFlight = nil
	r.insert(outboxtest.Entry{ID: "u", Topic: "u"})
	rows, err := r.box.Store().Read(t.Context(), outbox.Read{Lanes: []int{0}, Topics: []string{"u"}, MaxRows: 100, MaxBytes: 1 << 20})
	require.NoError(t, err)
	require.Len(t, rows, 1)
	r.exec(`DELETE FROM millrace_pauses`)
	require.Equal(t, []string{"1", "2", "3", "4"}, r.take(), "the topic goes on")

	settled, err := r.box.Store().Settle(t.Context(), r.grants, []outbox.Ref{{Pos: pos[1], ID: "2"}, {Pos: pos[2], ID: "another"}})
	require.NoError(t, err)
	require.Equal(t, []int64{pos[1]}, settled.Done)
	r.inFlight = []int64{pos[0]}
	require.Equal(t, []string{"3", "4"}, r.take(), "only what is gone is not looked for")
}

func TestAReadThatNamesWhatItDidNotBringProvesNothing(t *testing.T) {
	t.Parallel()
	r := newTaker(t)
	pos := r.add("1", "2", "3")
	r.inFlight = []int64{pos[1]}
	outbox.Raise(t.Context(), r.box.Store())
	require.Equal(t, []string{"1", "3"}, r.take())
	require.Zero(t, outbox.Reach(r.box.Store(), 0, "t"))
	r.inFlight = []int64{pos[0], pos[2]}
	require.Equal(t, []string{"2"}, r.take())
	r.reached(pos[2])
}

func TestAReadThatLookedAtTheFirstRowsOfALaneOnlyIsContinuedBehindThem(t *testing.T) {
	t.Parallel()
	r := newTaker(t)
	var want []int64
	q := outbox.Read{Topics: []string{"t"}, MaxRows: 40, MaxBytes: 1 << 20}
	for lane := range 8 {
		q.Lanes = append(q.Lanes, lane)
		n := 8
		if lane == 0 {
			n = 100 // in front of all others
		}
		for i := range n {
			want = append(want, r.insert(outboxtest.Entry{ID: fmt.Sprint(lane, "-", i), Topic: "t", Lane: lane})...)
		}
	}
	outbox.Raise(t.Context(), r.box.Store())
	for range 10 {
		rows, err := r.box.Store().Read(t.Context(), q)
		require.NoError(t, err)
		for _, row := range rows {
			q.Exclude = append(q.Exclude, row.Pos)
		}
	}
	require.Positive(t, outbox.Reach(r.box.Store(), 7, "t"), "else this test shows nothing")
	slices.Sort(q.Exclude)
	require.Equal(t, want, q.Exclude)
}

func TestAReadThatPassedOverABusyKeyProvesNothing(t *testing.T) {
	t.Parallel()
	r := newTaker(t)
	r.insert(outboxtest.Entry{ID: "busy", Topic: "t", Key: "k"})
	lane := outbox.Lane("k")
	outbox.Raise(t.Context(), r.box.Store())
	read := func(busy ...string) []outbox.Row {
		rows, err := r.box.Store().Read(t.Context(), outbox.Read{Lanes: []int{lane}, Topics: []string{"t"}, BusyKeys: busy, MaxRows: 100, MaxBytes: 1 << 20})
		require.NoError(t, err)
		return rows
	}
	require.Empty(t, read("k"))
	require.Len(t, read(), 1)
}

func TestAReadDuringWhichSomethingBecameReadyBelowWhatIsInFlightIsMadeAgain(t *testing.T) {
	t.Parallel()
	r := newTaker(t)
	r.insert(outboxtest.Entry{ID: "held", Topic: "t", Delay: time.Hour})
	last := r.add("1")[0]
	require.Equal(t, []string{"1"}, r.take())
	r.reached(last)
	r.add("later")
	lift, err := r.raw.BeginTx(t.Context(), nil)
	require.NoError(t, err)
	defer lift.Rollback()
	_, err = lift.ExecContext(t.Context(), `LOCK TABLE millrace_outbox`)
	require.NoError(t, err)
	answer := make(chan []string, 1)
	go func() { answer <- r.take() }()
	testenv.Eventually(t, 30*time.Second, "the read waits", func() bool { return r.waiters() > 0 })
	done := outbox.Lower(r.box.Store())
	_, err = lift.ExecContext(t.Context(), `UPDATE millrace_outbox SET ready = true, due_at = NULL WHERE id = 'held'`)
	require.NoError(t, err)
	require.NoError(t, lift.Commit())
	done(nil)
	require.Equal(t, []string{"held", "later"}, <-answer)
}

func TestReadsBeginAtTheBottomFromTimeToTime(t *testing.T) {
	t.Parallel()
	r := newTaker(t)
	r.add("1") // which keeps the bound down
	below := r.insert(outboxtest.Entry{ID: "below", Topic: "t", Delay: time.Hour})[0]
	require.Equal(t, []string{"1"}, r.take())
	r.reached(below)
	outbox.Later(r.box.Store(), -time.Hour) // no step of the proof
	r.exec(`UPDATE millrace_outbox SET ready = true, due_at = NULL WHERE id = 'below'`)
	require.Empty(t, r.take(), "else this test shows nothing")
	outbox.ReadsGrowOld(r.box.Store())
	require.Equal(t, []string{"below"}, r.take())
}

func TestReadsBeginAtTheBottomWhenPositionsAreDrawnAgain(t *testing.T) {
	t.Parallel()
	r := newTaker(t)
	r.add("0") // which keeps the bound down
	pos := r.add("1", "2", "3")
	r.take()
	r.reached(pos[2])
	r.settleAll(r.grants, outbox.Ref{Pos: pos[0], ID: "1"}, outbox.Ref{Pos: pos[1], ID: "2"}, outbox.Ref{Pos: pos[2], ID: "3"})
	r.exec(fmt.Sprint(`ALTER TABLE millrace_outbox ALTER COLUMN pos RESTART WITH `, pos[0]))
	require.Equal(t, pos[:1], r.add("again"))
	r.inFlight = r.inFlight[:1]
	require.Empty(t, r.take(), "else this test shows nothing")
	outbox.Raise(t.Context(), r.box.Store())
	require.Equal(t, []string{"again"}, r.take())
}
