package outbox_test

import (
	"context"
	"database/sql"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/outbox"
	"github.com/millrace-go/millrace/outbox/outboxtest"
)

// writes are the operations that depend on an epoch; each reports whether it took effect.
func writes(store outbox.Store, g outbox.Grant, ctx context.Context, pos []int64) map[string]func() (bool, error) {
	f := outbox.Refused{Ref: outbox.Ref{Pos: pos[1], ID: "1"}, Destination: "d", Key: "k", Attempt: 1, Stop: true}
	return map[string]func() (bool, error){
		"settle": func() (bool, error) {
			v, err := store.Settle(ctx, []outbox.Grant{g}, []outbox.Ref{{Pos: pos[1], ID: "1"}})
			return len(v.Done) > 0 || len(v.Lost) == 0, err
		},
		"attempt": func() (bool, error) { return store.Attempt(ctx, g, f.Ref, 1) },
		"refuse":  func() (bool, error) { return store.Refuse(ctx, g, f) },
		"hold":    func() (bool, error) { return store.Hold(ctx, g, "d", []outbox.Ref{f.Ref}) },
		"lift":    func() (bool, error) { return store.Lift(ctx, g, "d", "k") },
		"park":    func() (bool, error) { return store.Park(ctx, g, f) },
		"promote": func() (bool, error) {
			p, err := store.Promote(ctx, []outbox.Grant{g})
			return p.Ready > 0, err
		},
		"mark": func() (bool, error) {
			marked, err := store.Mark(ctx, []outbox.Grant{g}, []outbox.Ref{f.Ref})
			return len(marked) > 0, err
		},
		"release": func() (bool, error) { return false, store.Release(ctx, []outbox.Grant{g}) },
	}
}

func TestAWriteThatBeginsWhileATakeOverIsUncommittedIsRefused(t *testing.T) {
	for _, back := range []backend{postgres, postgresPool, mariadb} {
		t.Run(back.name, func(t *testing.T) {
			t.Parallel()
			b := open(t, back, outbox.Config{})
			store := b.box.Store()
			require.NoError(t, store.Join(t.Context(), "a", time.Minute))
			grants, err := store.Claim(t.Context(), "a", outbox.Lanes)
			require.NoError(t, err)
			g := grants[outbox.Lane("k")]
			pos := b.insert(outboxtest.Entry{ID: "0", Topic: "t", Key: "k"},
				outboxtest.Entry{ID: "1", Topic: "t", Key: "k", Schedule: "n", After: outbox.Keep},
				outboxtest.Entry{ID: "2", Topic: "t", Key: "k", Delay: time.Microsecond})
			_, err = store.Refuse(t.Context(), g, outbox.Refused{
				Ref: outbox.Ref{Pos: pos[0], ID: "0"}, Destination: "d", Key: "k", Attempt: 1, Stop: true, RetryIn: time.Hour})
			require.NoError(t, err)

			takeOver := func(name string) (did bool, err error) {
				tx, err := b.raw.BeginTx(t.Context(), &sql.TxOptions{})
				require.NoError(t, err)
				_, err = tx.ExecContext(t.Context(), fmt.Sprintf(`UPDATE millrace_lanes SET owner = 'b', epoch = epoch + 1 WHERE lane = %d`, g.Lane))
				require.NoError(t, err)
				type answer struct {
					did bool
					err error
				}
				answered := make(chan answer, 1)
				go func() {
					did, err := writes(store, g, t.Context(), pos)[name]()
					answered <- answer{did, err}
				}()
				testenv.Eventually(t, 30*time.Second, name+" waits for the take-over", func() bool { return b.waiters() > 0 || len(answered) > 0 })
				require.NoError(t, tx.Commit())
				g.Epoch++ // as if it had been its own
				a := <-answered
				return a.did, a.err
			}
			for name := range writes(store, g, t.Context(), pos) {
				testenv.Eventually(t, time.Minute, name+" is answered", func() bool {
					did, err := takeOver(name)
					require.False(t, did, name)
					if err != nil { // this machine was so slow that it gave up waiting for the lane
						require.Regexp(t, "lock timeout|Lock wait timeout", err.Error(), name)
					}
					return err == nil
				})
			}
			require.Equal(t, int64(0), b.one(`SELECT count(*) FROM millrace_lanes WHERE owner IS NULL`))
			require.Equal(t, int64(1), b.one(fmt.Sprintf(`SELECT count(*) FROM millrace_outbox WHERE pos = %d AND attempts = 0 AND held IS NULL AND due_at IS NULL`, pos[1])))
			require.Equal(t, int64(1), b.one(`SELECT count(*) FROM millrace_stops`))
			require.Equal(t, 3, b.count())
			require.Zero(t, b.one(`SELECT count(*) FROM millrace_sent`))
			require.EqualValues(t, 1, b.one(`SELECT count(*) FROM millrace_schedules`))
			require.Zero(t, b.one(`SELECT count(*) FROM millrace_sending`))
			require.EqualValues(t, 1, b.one(`SELECT count(*) FROM millrace_history`))
		})
	}
}

// waiters counts the sessions that wait for a lock.
func (b *bench) waiters() int64 {
	b.Helper()
	if b.driver == "mysql" {
		return b.one(`SELECT count(*) FROM information_schema.processlist
			WHERE db = database() AND command IN ('Query', 'Execute') AND time_ms > 50 AND id <> connection_id()`)
	}
	return b.one(`SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()`)
}

func TestNoWriteWaitsLongForALock(t *testing.T) {
	for _, back := range []backend{postgresPool, mariadb} {
		t.Run(back.name, func(t *testing.T) {
			t.Parallel()
			b := open(t, back, outbox.Config{})
			store := b.box.Store()
			pos := b.insert(outboxtest.Entry{ID: "0", Topic: "t", Key: "k"}, outboxtest.Entry{ID: "1", Topic: "t", Key: "k"})
			require.NoError(t, store.Join(t.Context(), "a", time.Minute))
			_, err := store.Claim(t.Context(), "a", outbox.Lanes)
			require.NoError(t, err)
			admin, err := b.raw.BeginTx(t.Context(), nil)
			require.NoError(t, err)
			defer admin.Rollback()
			_, err = admin.ExecContext(t.Context(), `UPDATE millrace_lanes SET crashes = 1`)
			require.NoError(t, err)
			for name, write := range writes(store, outbox.Grant{Lane: outbox.Lane("k"), Epoch: 1}, t.Context(), pos) {
				if name == "promote" {
					continue // there is nothing due
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // far more than a second, on a busy machine
				begin := time.Now()
				_, err := write()
				require.Error(t, err, name)
				require.NoError(t, ctx.Err(), "%s waited %v", name, time.Since(begin))
				require.False(t, outbox.IsSetup(err), "%v", err)
				cancel()
			}
			ok, err := store.Renew(t.Context(), "a", 0, time.Minute, nil)
			require.NoError(t, err)
			require.True(t, ok, "a renewal waits for no lane")
		})
	}
}
