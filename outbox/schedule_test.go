package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/outbox"
)

var errRollback = errors.New("roll back")

func (b *bench) publish(topic string, msgs ...*message.Message) {
	b.Helper()
	require.NoError(b, b.inTx(b.Context(), func(ctx context.Context) error { return b.box.Publish(ctx, topic, msgs...) }))
}

func (b *bench) waitingIDs() (ids []string) {
	b.Helper()
	for _, r := range b.waiting() {
		ids = append(ids, r.ID)
	}
	return ids
}

func TestACancelledMessageIsNeverSentIfTheTransactionCommits(t *testing.T) {
	each(t, func(b *bench) {
		b.publish("orders", outbox.WithSchedule(outbox.WithDelay(msg("1", ""), time.Hour), "n"), msg("2", ""))
		require.ErrorIs(b, b.inTx(b.Context(), func(ctx context.Context) error {
			require.NoError(b, b.box.Cancel(ctx, "n"))
			return errRollback
		}), errRollback)
		require.Equal(b, []string{"1", "2"}, b.waitingIDs())

		require.NoError(b, b.inTx(b.Context(), func(ctx context.Context) error {
			require.NoError(b, b.box.Cancel(ctx, "n"))
			require.ErrorIs(b, b.box.Cancel(ctx, "n"), outbox.ErrNoSchedule)
			require.ErrorIs(b, b.box.Cancel(ctx, "another"), outbox.ErrNoSchedule)
			return b.box.Publish(ctx, "orders", outbox.WithSchedule(msg("3", ""), "n")) // the transaction goes on
		}))
		require.Equal(b, []string{"2", "3"}, b.waitingIDs())
	})
}

func TestWhatTheTransactionItselfHasScheduledCanBeCancelled(t *testing.T) {
	each(t, func(b *bench) {
		require.NoError(b, b.inTx(b.Context(), func(ctx context.Context) error {
			require.NoError(b, b.box.Publish(ctx, "orders", outbox.WithSchedule(msg("1", ""), "n"), msg("2", "")))
			return b.box.Cancel(ctx, "n")
		}))
		require.Equal(b, []string{"2"}, b.waitingIDs())
	})
}

func TestReplaceIsDeleteAndInsertUnderTheSameName(t *testing.T) {
	each(t, func(b *bench) {
		b.publish("orders", outbox.WithSchedule(outbox.WithDelay(msg("1", "old"), time.Hour), "n"), msg("2", ""))
		require.NoError(b, b.inTx(b.Context(), func(ctx context.Context) error {
			return b.box.Replace(ctx, "n", "bills", outbox.WithDelay(outbox.WithKey(msg("1", "new"), "k"), 2*time.Hour))
		}))
		rows := b.waiting()
		require.Equal(b, []string{"2", "1"}, b.waitingIDs(), "it has a new position")
		require.Equal(b, "bills", rows[1].Topic)
		require.Equal(b, "k", rows[1].Key)
		require.InDelta(b, 2*time.Hour.Seconds(), b.wait("1").Seconds(), 60)

		require.NoError(b, b.inTx(b.Context(), func(ctx context.Context) error {
			require.ErrorIs(b, b.box.Replace(ctx, "another", "bills", msg("3", "")), outbox.ErrNoSchedule)
			require.ErrorIs(b, b.box.Replace(ctx, "n", "bills", msg("", "")), outbox.ErrInvalidMessage)
			require.ErrorIs(b, b.box.Replace(ctx, "", "bills", msg("3", "")), outbox.ErrInvalidMessage)
			return b.box.Replace(ctx, "n", "bills", msg("4", ""))
		}))
		require.Equal(b, []string{"2", "4"}, b.waitingIDs())
		require.NoError(b, b.inTx(b.Context(), func(ctx context.Context) error { return b.box.Cancel(ctx, "n") }))
	})
}

func TestANameStandsForOneWaitingMessage(t *testing.T) {
	each(t, func(b *bench) {
		b.publish("orders", outbox.WithSchedule(msg("1", ""), "n"))
		err := b.inTx(b.Context(), func(ctx context.Context) error {
			return b.box.Publish(ctx, "orders", outbox.WithSchedule(msg("2", ""), "n"), msg("3", ""))
		})
		require.ErrorIs(b, err, outbox.ErrDuplicateSchedule)
		require.NotErrorIs(b, err, outbox.ErrDuplicateMessage)
		require.Equal(b, []string{"1"}, b.waitingIDs(), "nothing of the transaction remains")
	})
}

func TestCancelNeedsATransactionOfThisOutbox(t *testing.T) {
	b := open(t, sqlite, outbox.Config{})
	require.ErrorIs(t, b.box.Cancel(t.Context(), "n"), outbox.ErrNoTransaction)
	require.ErrorIs(t, b.box.Replace(t.Context(), "n", "orders", msg("1", "")), outbox.ErrNoTransaction)
}

// Who takes such an error for the answer that the message has gone commits, and it has not.
func TestACancelThatCouldNotLookDoesNotSayThatNothingWaits(t *testing.T) {
	each(t, func(b *bench) {
		b.exec(`ALTER TABLE millrace_sending RENAME TO gone`)
		_ = b.inTx(b.Context(), func(ctx context.Context) error {
			err := b.box.Cancel(ctx, "n")
			require.Error(b, err)
			require.NotErrorIs(b, err, outbox.ErrNoSchedule)
			return err
		})
	})
}

func TestACancelledMessageWasNotDeliveredAndEveryOtherOneWas(t *testing.T) {
	rounds := 100
	if testenv.Full() {
		rounds = 10000
	}
	each(t, func(b *bench) {
		const width = 20 // messages of one round
		store := b.box.Store()
		require.NoError(b, store.Join(b.Context(), "a", time.Hour))
		grants, err := store.Claim(b.Context(), "a", outbox.Lanes)
		require.NoError(b, err)
		delivered, cancelled := map[string]int{}, map[string]bool{}
		for round := 0; round < rounds; round += width {
			var group sync.WaitGroup
			var mu sync.Mutex
			for i := range width {
				name := fmt.Sprint(round + i)
				b.publish("orders", outbox.WithSchedule(msg("of "+name, ""), name))
			}
			group.Go(func() {
				for i := range width {
					name := fmt.Sprint(round + i)
					err := b.inTx(b.Context(), func(ctx context.Context) error { return b.box.Cancel(ctx, name) })
					mu.Lock()
					if cancelled[name] = err == nil; err != nil && !errors.Is(err, outbox.ErrTooLate) && !errors.Is(err, outbox.ErrNoSchedule) {
						b.Errorf("cancel: %v", err)
					}
					mu.Unlock()
				}
			})
			group.Go(func() { b.forward(grants, func(r outbox.Row) { delivered[r.ID]++ }) })
			group.Wait()
			b.forward(grants, func(r outbox.Row) { delivered[r.ID]++ })
		}
		require.Zero(b, b.count())
		for name, gone := range cancelled {
			times := delivered["of "+name]
			require.Equal(b, gone, times == 0, "message %s: cancelled %v, delivered %d times", name, gone, times)
			require.LessOrEqual(b, times, 1)
		}
		require.Len(b, cancelled, rounds)
		require.Zero(b, b.one(`SELECT (SELECT count(*) FROM millrace_schedules) + (SELECT count(*) FROM millrace_sending)`))
	})
}

// forward delivers what waits, one message at a time, until a read finds nothing.
func (b *bench) forward(grants []outbox.Grant, deliver func(outbox.Row)) {
	store := b.box.Store()
	for rows := b.read("orders"); len(rows) > 0; rows = b.read("orders") {
		for _, r := range rows {
			if r.Cancellable {
				marked, err := store.Mark(b.Context(), grants, []outbox.Ref{r.Ref})
				if err != nil || len(marked) == 0 {
					continue
				}
			}
			deliver(r)
			b.settleAll(grants, r.Ref)
		}
	}
}
