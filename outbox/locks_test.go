package outbox_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/outbox"
	"github.com/millrace-go/millrace/outbox/outboxtest"
)

// rest is an outbox with a row for each operation of a store on one lane.
func (b *bench) rest() (operations map[string]func() error) {
	b.Helper()
	ctx, store := b.Context(), b.box.Store()
	g := b.holding()[outbox.Lane("k")]
	pos := b.insert(
		outboxtest.Entry{ID: "0", Topic: "t", Key: "k"}, outboxtest.Entry{ID: "1", Topic: "t", Key: "k"},
		outboxtest.Entry{ID: "2", Topic: "t", Key: "k", Delay: time.Microsecond}, outboxtest.Entry{ID: "3", Topic: "t", Key: "k", Schedule: "n"},
		outboxtest.Entry{ID: "4", Topic: "t", Key: "k", After: outbox.Keep}, outboxtest.Entry{ID: "5", Topic: "t", Key: "k"},
		outboxtest.Entry{ID: "6", Topic: "t", Key: "k"})
	refused := func(i int, stop bool) outbox.Refused {
		return outbox.Refused{Ref: outbox.Ref{Pos: pos[i], ID: fmt.Sprint(i)}, Destination: "d", Key: "k", Attempt: 1, Stop: stop, RetryIn: time.Hour}
	}
	_, err := store.Refuse(ctx, g, refused(0, true))
	require.NoError(b, err)
	_, err = store.Hold(ctx, g, "d", []outbox.Ref{{Pos: pos[6], ID: "6"}})
	require.NoError(b, err)
	must := func(ok bool, err error) error {
		if err == nil && !ok {
			return errRollback
		}
		return err
	}
	return map[string]func() error{
		"attempt": func() error { return must(store.Attempt(ctx, g, refused(1, false).Ref, 1)) },
		"refuse":  func() error { return must(store.Refuse(ctx, g, refused(1, false))) },
		"hold":    func() error { return must(store.Hold(ctx, g, "d", []outbox.Ref{{Pos: pos[5], ID: "5"}})) },
		"lift":    func() error { return must(store.Lift(ctx, g, "d", "k")) },
		"promote": func() error {
			p, err := store.Promote(ctx, []outbox.Grant{g})
			return must(p.Ready > 0, err)
		},
		"mark": func() error {
			marked, err := store.Mark(ctx, []outbox.Grant{g}, []outbox.Ref{{Pos: pos[3], ID: "3"}})
			return must(len(marked) == 1, err)
		},
		"settle": func() error { // with positions that are not there, one of them beyond the last row
			v, err := store.Settle(ctx, []outbox.Grant{g}, []outbox.Ref{{Pos: pos[0], ID: "x"}, {Pos: pos[3], ID: "3"}, {Pos: pos[4], ID: "4"}, {Pos: 1 << 40, ID: "y"}})
			return must(len(v.Done) == 2 && len(v.Gone) == 2, err)
		},
		"park": func() error { return must(store.Park(ctx, g, refused(1, false))) },
	}
}

// gate makes every change of rows wait inside its statement until it is opened.
func (b *bench) gate() (open func()) {
	b.Helper()
	conn, err := b.raw.Conn(b.Context())
	require.NoError(b, err)
	_, err = conn.ExecContext(b.Context(), `DO GET_LOCK(DATABASE(), 0)`)
	require.NoError(b, err)
	for _, on := range []string{"UPDATE ON millrace_outbox", "DELETE ON millrace_outbox", "DELETE ON millrace_schedules"} {
		name := strings.NewReplacer(" ", "_").Replace("gate " + on)
		b.exec(`CREATE OR REPLACE TRIGGER ` + name + ` BEFORE ` + on + ` FOR EACH ROW
			BEGIN SET @gate = GET_LOCK(DATABASE(), 60); SET @gate = RELEASE_LOCK(DATABASE()); END`)
	}
	return func() {
		b.Helper()
		_, err := conn.ExecContext(b.Context(), `DO RELEASE_LOCK(DATABASE())`)
		require.NoError(b, err)
		require.NoError(b, conn.Close())
	}
}

// At REPEATABLE READ, MySQL's default, a statement that names a row which is not there locks the gap in
// which it would be, and business transactions insert at the end of just that table.
func TestAnOpenWriteOfTheStoreBlocksNoBusinessInsertOnMySQL(t *testing.T) {
	for _, name := range []string{"attempt", "refuse", "hold", "lift", "promote", "mark", "settle", "park"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := open(t, mariadb, outbox.Config{})
			operation := b.rest()[name]
			business := connect(t, mariadb, b.url+"&innodb_lock_wait_timeout=1", outbox.Config{})
			var level string
			require.NoError(t, business.raw.QueryRow(`SELECT @@tx_isolation`).Scan(&level))
			require.Equal(t, "REPEATABLE-READ", level)
			before := b.count()
			open := b.gate()
			answer := make(chan error, 1)
			go func() { answer <- operation() }()
			testenv.Eventually(t, 30*time.Second, name+" has begun", func() bool {
				return b.one(`SELECT count(*) FROM information_schema.processlist WHERE db = DATABASE() AND state = 'User lock'`) == 1
			})
			var msgs []*message.Message
			for lane := range outbox.Lanes {
				msgs = append(msgs, msg(fmt.Sprint("business", lane), ""))
			}
			business.publish("t", append(msgs, outbox.WithSchedule(msg("named", ""), "o"), outbox.WithKey(msg("keyed", ""), "k"))...)
			err := business.inTx(t.Context(), func(ctx context.Context) error { return business.box.Cancel(ctx, "nobody") })
			require.ErrorIs(t, err, outbox.ErrNoSchedule)
			require.Equal(t, before+len(msgs)+2, b.count(), "the operation is still under way")
			open()
			require.NoError(t, <-answer)
		})
	}
}

func TestAnUncommittedBusinessTransactionBlocksNoWriteOfTheStore(t *testing.T) {
	for _, back := range []backend{postgresPool, mariadb} {
		t.Run(back.name, func(t *testing.T) {
			t.Parallel()
			for _, name := range []string{"attempt", "refuse", "hold", "lift", "promote", "mark", "settle", "park"} {
				b := open(t, back, outbox.Config{})
				operation := b.rest()[name]
				require.NoError(t, b.inTx(t.Context(), func(ctx context.Context) error {
					for lane := range outbox.Lanes {
						require.NoError(t, b.box.Publish(ctx, "t", msg(fmt.Sprint("business", lane), "")))
					}
					require.NoError(t, b.box.Publish(ctx, "t", outbox.WithSchedule(msg("named", ""), "o")))
					require.ErrorIs(t, b.box.Cancel(ctx, "nobody"), outbox.ErrNoSchedule)
					require.NoError(t, b.box.Flush(ctx))
					require.NoError(t, operation(), name)
					return nil
				}))
			}
		})
	}
}

// A cancellation locks the name, and the gap beside a name that is not there: not the outbox.
func TestAnOpenCancellationBlocksNoPublish(t *testing.T) {
	each(t, func(b *bench) {
		if b.driver == "sqlite" {
			return // has one writer
		}
		url := b.url
		if b.driver == "mysql" {
			url += "&innodb_lock_wait_timeout=1"
		}
		other := connect(b.T, b.backend, url, outbox.Config{})
		b.publish("t", outbox.WithSchedule(outbox.WithDelay(msg("1", ""), time.Hour), "m"))
		require.NoError(b, b.inTx(b.Context(), func(ctx context.Context) error {
			require.NoError(b, b.box.Cancel(ctx, "m"))
			require.ErrorIs(b, b.box.Cancel(ctx, "nobody"), outbox.ErrNoSchedule)
			for i := range 10 {
				other.publish("t", msg(fmt.Sprint("other", i), ""))
			}
			return nil
		}))
		require.Equal(b, 10, b.count())
	})
}
