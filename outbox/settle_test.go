package outbox_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/outbox"
	"github.com/millrace-go/millrace/outbox/outboxtest"
)

// What others did to the rows after the settle had taken its snapshot, and before it locked them.
func TestASettleTakesRowsAsTheyAreWhenItHasLockedThem(t *testing.T) {
	for _, back := range []backend{postgres, postgresPool} {
		t.Run(back.name, func(t *testing.T) {
			t.Parallel()
			b := open(t, back, outbox.Config{})
			g := b.holder()[outbox.Lane("k")]
			ids := []string{"untouched", "changed", "deleted", "replaced", "moved", "locked", "kept"}
			var entries []outboxtest.Entry
			for _, id := range ids {
				entries = append(entries, outboxtest.Entry{ID: id, Topic: "t", Key: "k", Schedule: "schedule of " + id})
			}
			entries[6].After = outbox.Keep
			var refs []outbox.Ref
			at := map[string]int64{}
			for i, pos := range b.insert(entries...) {
				refs = append(refs, outbox.Ref{Pos: pos, ID: ids[i]})
				at[ids[i]] = pos
			}
			settle := func(ctx context.Context, refs ...outbox.Ref) (outbox.Settled, error) {
				return b.box.Store().Settle(ctx, []outbox.Grant{g}, refs)
			}
			gate, err := b.raw.BeginTx(t.Context(), nil)
			require.NoError(t, err)
			defer gate.Rollback()
			_, err = gate.ExecContext(t.Context(), `SELECT 1 FROM millrace_lanes WHERE lane = $1 FOR UPDATE`, g.Lane)
			require.NoError(t, err)
			type answer struct {
				s   outbox.Settled
				err error
			}
			answered := make(chan answer, 1)
			go func() {
				s, err := settle(t.Context(), refs...)
				answered <- answer{s, err}
			}()
			testenv.Eventually(t, 30*time.Second, "the settle waits for the lane", func() bool { return b.waiters() > 0 || len(answered) > 0 })
			changes, err := b.raw.BeginTx(t.Context(), nil)
			require.NoError(t, err)
			for _, change := range []string{
				`UPDATE millrace_outbox SET attempts = 1 WHERE id = 'changed'`,
				`DELETE FROM millrace_outbox WHERE id = 'deleted'`,
				`UPDATE millrace_outbox SET id = 'another' WHERE id = 'replaced'`,
				`UPDATE millrace_outbox SET lane = (lane + 1) % 64 WHERE id = 'moved'`,
			} {
				_, err := changes.ExecContext(t.Context(), change)
				require.NoError(t, err)
			}
			require.NoError(t, changes.Commit())
			unlock := b.lock(at["locked"])
			require.NoError(t, gate.Commit())
			a := <-answered
			unlock()
			if a.err != nil { // this machine was so slow that the settle gave up waiting for the lane
				require.ErrorContains(t, a.err, "lock timeout")
				a.s, a.err = settle(t.Context(), refs...)
				require.NoError(t, a.err)
			}
			require.Empty(t, a.s.Lost)
			require.Subset(t, a.s.Done, []int64{at["untouched"], at["kept"]})
			require.Subset(t, a.s.Gone, []int64{at["deleted"], at["replaced"]})
			require.Len(t, a.s.Gone, 2)

			again, err := settle(t.Context(), refs...)
			require.NoError(t, err)
			require.ElementsMatch(t, []int64{at["untouched"], at["changed"], at["kept"], at["locked"]}, append(a.s.Done, again.Done...))
			var left []string
			for _, r := range b.waiting() {
				left = append(left, r.ID)
			}
			require.Equal(t, []string{"another", "moved"}, left, "what is not named, and what is in no lane of the grants")
			require.EqualValues(t, 1, b.one(`SELECT count(*) FROM millrace_sent WHERE id = 'kept'`))
			require.EqualValues(t, 3, b.one(`SELECT count(*) FROM millrace_schedules`), "of what was not settled")
		})
	}
}

// Rows that lie close together are settled in one walk over what is between them, others are looked up.
func TestASettleEndsWhatIsNamedAndNothingBetween(t *testing.T) {
	for _, back := range []backend{postgres, postgresPool} {
		for step, walks := range map[int]bool{1: true, 2: true, 3: true, 7: false} {
			t.Run(fmt.Sprint(back.name, ", one row in ", step), func(t *testing.T) {
				t.Parallel()
				b := open(t, back, outbox.Config{})
				grants := b.holder()
				granted := grants[:len(grants)-8]
				const n = 420
				b.backlog("t", n)
				b.exec(`UPDATE millrace_outbox SET keep = 2, keep_us = 1000000 WHERE pos = 29`)
				var refs []outbox.Ref
				var done, gone []int64
				for pos := 1; pos <= n; pos += step {
					id := fmt.Sprint("t", pos)
					named := id
					switch {
					case pos%10 == 1: // another message had this position when it was read
						named, gone = "another", append(gone, int64(pos))
					case slices.ContainsFunc(granted, func(g outbox.Grant) bool { return g.Lane == pos%outbox.Lanes }):
						done = append(done, int64(pos))
					}
					refs = append(refs, outbox.Ref{Pos: int64(pos), ID: named})
				}
				require.Equal(t, walks, outbox.Walks(refs))
				rand.Shuffle(len(refs), func(i, j int) { refs[i], refs[j] = refs[j], refs[i] })
				s, err := b.box.Store().Settle(t.Context(), granted, refs)
				require.NoError(t, err)
				require.ElementsMatch(t, done, s.Done)
				require.ElementsMatch(t, gone, s.Gone)
				require.Equal(t, n-len(done), b.count(), "nothing else was deleted")
				for _, r := range b.waiting() {
					require.NotContains(t, done, r.Pos)
				}
			})
		}
	}
}
