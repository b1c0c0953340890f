package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/components/cqrs"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/internal/meta"
	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/outbox"
)

func msg(id, payload string) *message.Message { return message.NewMessage(id, []byte(payload)) }

func TestMessagesCommitAndRollBackWithTheTransaction(t *testing.T) {
	each(t, func(b *bench) {
		require.NoError(b, b.inTx(b.Context(), func(ctx context.Context) error {
			return b.box.Publish(ctx, "orders", msg("1", "one"), msg("2", "two"))
		}))
		failed := errors.New("no")
		require.ErrorIs(b, b.inTx(b.Context(), func(ctx context.Context) error {
			require.NoError(b, b.box.Publish(ctx, "orders", msg("3", "three")))
			return failed
		}), failed)
		rows := b.read("orders")
		require.Len(b, rows, 2)
		require.Equal(b, "1", rows[0].ID)
		require.Equal(b, "one", string(rows[0].Payload))
		require.Equal(b, "2", rows[1].ID)
		require.Equal(b, outbox.Lane("2"), rows[1].Lane)
	})
}

func TestMessagesAreInsertedWithCommitAndNotBefore(t *testing.T) {
	each(t, func(b *bench) {
		require.NoError(b, b.inTx(b.Context(), func(ctx context.Context) error {
			require.NoError(b, b.box.Publish(ctx, "orders", msg("1", "")))
			require.Equal(b, int64(0), b.inside(ctx), "the message was inserted before Flush")
			require.NoError(b, b.box.Flush(ctx))
			require.Equal(b, int64(1), b.inside(ctx), "Flush inserted nothing")
			return nil
		}))
		require.Equal(b, 1, b.count())
	})
}

// inside counts the rows that the transaction in ctx sees.
func (b *bench) inside(ctx context.Context) (n int64) {
	b.Helper()
	tx, ok := txnFrom(ctx, b.db)
	require.True(b, ok)
	require.NoError(b, tx.Query(ctx, `SELECT count(*) FROM millrace_outbox`, nil, func(row scanner) error { return row.Scan(&n) }))
	return n
}

func TestAMessageChangedAfterPublishKeepsItsOldContent(t *testing.T) {
	b := open(t, sqlite, outbox.Config{})
	m := msg("1", "before")
	m.Metadata.Set("a", "before")
	require.NoError(t, b.inTx(t.Context(), func(ctx context.Context) error {
		require.NoError(t, b.box.Publish(ctx, "orders", outbox.WithKey(m, "before")))
		copy(m.Payload, "after!")
		m.UUID = "2"
		m.Metadata.Set("a", "after")
		outbox.WithKey(m, "after")
		return nil
	}))
	r := b.read("orders")[0]
	require.Equal(t, "before", string(r.Payload))
	require.Equal(t, "1", r.ID)
	require.Equal(t, "before", r.Metadata["a"])
	require.Equal(t, "before", r.Key)
}

func TestTheKeyComesFromTheMessageOrTheConfig(t *testing.T) {
	b := open(t, sqlite, outbox.Config{Key: func(topic string, m *message.Message) string { return topic + string(m.Payload) }})
	own := outbox.WithKey(msg("1", "x"), "own")
	own.Metadata.Set("millrace_place", "12")
	own.Metadata.Set("kept", "yes")
	require.NoError(t, b.inTx(t.Context(), func(ctx context.Context) error {
		return b.box.Publish(ctx, "orders", own, msg("2", "x"))
	}))
	rows := b.read("orders")
	require.Equal(t, "own", rows[0].Key)
	require.Equal(t, message.Metadata{meta.Key: "own", "kept": "yes"}, rows[0].Metadata, "what is reserved is dropped, but for the key")
	require.Equal(t, "ordersx", rows[1].Key)
	require.Equal(t, outbox.Lane("ordersx"), rows[1].Lane)
	require.Equal(t, "ordersx", rows[1].Metadata[meta.Key])
	require.Equal(t, "", outbox.WithKey(own, "").Metadata.Get(meta.Key))
}

func TestWhatCannotBeStoredIsRefusedBeforeAnySQL(t *testing.T) {
	b := open(t, sqlite, outbox.Config{MaxPayload: 100})
	good := msg("good", "")
	with := func(name, value string) *message.Message {
		m := msg("1", "")
		m.Metadata[name] = value
		return m
	}
	many := msg("1", "")
	for i := range 65 {
		many.Metadata[fmt.Sprint(i)] = ""
	}
	for name, c := range map[string]struct {
		topic string
		msg   *message.Message
		want  string
	}{
		"nil message":        {"orders", nil, "nil"},
		"empty topic":        {"", good, "topic is empty"},
		"long topic":         {strings.Repeat("t", 201), good, "topic has 201 bytes"},
		"topic with NUL":     {"a\x00", good, "NUL"},
		"empty id":           {"orders", msg("", ""), "id is empty"},
		"long id":            {"orders", msg(strings.Repeat("i", 65), ""), "id has 65 bytes"},
		"id not UTF-8":       {"orders", msg("\xff", ""), "UTF-8"},
		"large payload":      {"orders", msg("1", strings.Repeat("secret", 17)), "payload has 102 bytes, more than Config.MaxPayload (100)"},
		"long key":           {"orders", outbox.WithKey(msg("1", ""), strings.Repeat("k", 256)), "order key has 256 bytes"},
		"key with NUL":       {"orders", outbox.WithKey(msg("1", ""), "secret\x00"), "NUL"},
		"many metadata":      {"orders", many, "65 entries"},
		"large metadata":     {"orders", with("a", strings.Repeat("secret", 1400)), "has 8400 bytes"},
		"metadata name long": {"orders", with(strings.Repeat("n", 129), ""), "129 bytes"},
		"metadata with NUL":  {"orders", with("a", "secret\x00"), "NUL"},
		"metadata not UTF-8": {"orders", with("a", "secret\xff"), "UTF-8"},
	} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, b.inTx(t.Context(), func(ctx context.Context) error {
				err := b.box.Publish(ctx, c.topic, good, c.msg)
				require.ErrorIs(t, err, outbox.ErrInvalidMessage)
				require.ErrorContains(t, err, c.want)
				require.NotContains(t, err.Error(), "secret")
				return nil
			}))
			require.Equal(t, 0, b.count(), "a good message beside the bad one was published")
		})
	}
}

func TestNoMessagesAreNothing(t *testing.T) {
	b := open(t, sqlite, outbox.Config{})
	require.NoError(t, b.inTx(t.Context(), func(ctx context.Context) error { return b.box.Publish(ctx, "orders") }))
	require.NoError(t, b.box.Publisher().Publish("orders"))
	require.NoError(t, b.box.Publisher().Close())
}

func TestOutsideOfATransactionPublishRefusesAndSaysWhatToDo(t *testing.T) {
	b := open(t, sqlite, outbox.Config{})
	other := open(t, sqlite, outbox.Config{})
	for _, err := range []error{
		b.box.Publish(t.Context(), "orders", msg("1", "")),
		b.box.Publisher().Publish("orders", msg("1", "")),
		b.box.Flush(t.Context()),
		other.inTx(t.Context(), func(ctx context.Context) error { return b.box.Publish(ctx, "orders", msg("1", "")) }),
	} {
		require.ErrorIs(t, err, outbox.ErrNoTransaction)
		require.ErrorIs(t, err, millrace.ErrNoTransaction)
		require.ErrorContains(t, err, "millrace.InTx")
		require.ErrorContains(t, err, "AllowOutsideTx")
	}
}

func TestOutsideOfATransactionPublishInsertsAloneIfAllowed(t *testing.T) {
	for _, back := range backends {
		t.Run(back.name, func(t *testing.T) {
			t.Parallel()
			b := open(t, back, outbox.Config{AllowOutsideTx: true, MaxPayload: 8 << 20})
			wake, end := b.box.Subscribe()
			defer end()
			require.NoError(t, b.box.Publish(t.Context(), "orders", msg("1", "")))
			require.Equal(t, uint64(1)<<outbox.Lane("1"), wake.Take())
			require.ErrorIs(t, b.box.Publisher().Publish("orders", msg("2", strings.Repeat("x", 5<<20)), msg("1", "")),
				outbox.ErrDuplicateMessage)
			require.Equal(t, 1, b.count(), "a part of the call stayed")
		})
	}
}

func TestAReadOnlyTransactionIsRefused(t *testing.T) {
	b := open(t, postgres, outbox.Config{})
	err := b.inTx(t.Context(), func(ctx context.Context) error { return b.box.Publish(ctx, "orders", msg("1", "")) }, millrace.ReadOnly())
	require.ErrorIs(t, err, millrace.ErrReadOnly)
}

func TestATransactionThatHasEndedIsRefused(t *testing.T) {
	b := open(t, sqlite, outbox.Config{})
	var kept context.Context
	require.NoError(t, b.inTx(t.Context(), func(ctx context.Context) error { kept = ctx; return nil }))
	require.ErrorIs(t, b.box.Publish(kept, "orders", msg("1", "")), millrace.ErrTxCompleted)
}

func TestAnIdThatWaitsIsRefused(t *testing.T) {
	each(t, func(b *bench) {
		publish := func(ids ...string) error {
			return b.inTx(b.Context(), func(ctx context.Context) error {
				for _, id := range ids {
					if err := b.box.Publish(ctx, "orders", msg(id, "secret")); err != nil {
						return err
					}
				}
				return nil
			})
		}
		require.NoError(b, publish("1"))
		for name, err := range map[string]error{
			"waiting": publish("2", "1"),
			"twice":   publish("3", "3"),
			"in one call": b.inTx(b.Context(), func(ctx context.Context) error {
				return b.box.Publish(ctx, "orders", msg("4", ""), msg("4", ""))
			}),
		} {
			require.ErrorIs(b, err, outbox.ErrDuplicateMessage, name)
			require.NotContains(b, err.Error(), "secret")
		}
		require.Equal(b, 1, b.count(), "the transaction failed as a whole")
		b.exec(`DELETE FROM millrace_outbox`)
		require.NoError(b, publish("1"), "an id that does not wait any more is free")
	})
}

func TestASavepointThatIsRolledBackTakesItsMessagesAlong(t *testing.T) {
	each(t, func(b *bench) {
		undo := errors.New("undo")
		require.NoError(b, b.inTx(b.Context(), func(ctx context.Context) error {
			require.NoError(b, b.box.Publish(ctx, "orders", msg("1", "")))
			require.ErrorIs(b, b.inTx(ctx, func(ctx context.Context) error {
				require.NoError(b, b.box.Publish(ctx, "orders", msg("2", "")))
				return undo
			}, millrace.Nested()), undo)
			require.NoError(b, b.inTx(ctx, func(ctx context.Context) error {
				return b.box.Publish(ctx, "orders", msg("3", ""))
			}, millrace.Nested()))
			return b.box.Publish(ctx, "orders", msg("4", ""))
		}))
		var ids []string
		for _, r := range b.read("orders") {
			ids = append(ids, r.ID)
		}
		require.Equal(b, []string{"1", "3", "4"}, ids)
	})
}

func TestALargePublishIsCutIntoStatements(t *testing.T) {
	for _, back := range backends {
		t.Run(back.name, func(t *testing.T) {
			t.Parallel()
			b := open(t, back, outbox.Config{MaxPayload: 5 << 20})
			var msgs []*message.Message
			n := 2500
			if testenv.Full() {
				n = 100_000
			}
			for i := range n {
				msgs = append(msgs, msg(fmt.Sprint("id", i), ""))
			}
			if back.driver == "sqlite" { // which has no limit of bytes
				msgs = append(msgs, msg("large1", ""), msg("large2", ""))
			} else {
				msgs = append(msgs, msg("large1", strings.Repeat("x", 5<<20)), msg("large2", strings.Repeat("y", 5<<20)))
			}
			require.NoError(t, b.inTx(t.Context(), func(ctx context.Context) error { return b.box.Publish(ctx, "orders", msgs...) }))
			require.Equal(t, len(msgs), b.count())
			rows := b.read("orders")
			require.Len(t, rows, min(len(msgs), 10000))
			for i, r := range rows {
				require.Equal(t, msgs[i].UUID, r.ID)
			}
			for i := range msgs[:1500] {
				msgs[i].UUID += "again"
			}
			require.ErrorIs(t, b.inTx(t.Context(), func(ctx context.Context) error { return b.box.Publish(ctx, "orders", msgs...) }),
				outbox.ErrDuplicateMessage, "the second statement fails")
			require.Equal(t, len(msgs), b.count(), "nothing of the first remains")
		})
	}
}

func TestTheWakeHearsOfCommitsAndNotOfRollbacks(t *testing.T) {
	b := open(t, sqlite, outbox.Config{})
	wake, end := b.box.Subscribe()
	other, endOther := b.box.Subscribe()
	defer endOther()
	publish := func(fail error, ids ...string) error {
		return b.inTx(t.Context(), func(ctx context.Context) error {
			for _, id := range ids {
				require.NoError(t, b.box.Publish(ctx, "orders", msg(id, "")))
			}
			require.Empty(t, wake.C(), "signalled before the commit")
			return fail
		})
	}
	require.Error(t, publish(errors.New("no"), "0"))
	require.Empty(t, wake.C())
	require.NoError(t, publish(nil, "1", "2"))
	<-wake.C()
	require.Equal(t, uint64(1)<<outbox.Lane("1")|uint64(1)<<outbox.Lane("2"), wake.Take())
	require.Zero(t, wake.Take())
	require.NotZero(t, other.Take(), "each subscriber has signals of its own")

	require.NoError(t, b.inTx(t.Context(), func(ctx context.Context) error { // inserted at once
		return b.inTx(ctx, func(ctx context.Context) error { return b.box.Publish(ctx, "orders", msg("3", "")) }, millrace.Nested())
	}))
	<-wake.C()
	require.Equal(t, uint64(1)<<outbox.Lane("3"), wake.Take())
	end()
	end()
	require.NoError(t, publish(nil, "4"))
	require.Empty(t, wake.C())
}

func TestManySignalsAreOneAndNoneIsLost(t *testing.T) {
	b := open(t, sqlite, outbox.Config{})
	wake, end := b.box.Subscribe()
	defer end()
	const writers = 8
	var group sync.WaitGroup
	var expected uint64
	for w := range writers {
		expected |= uint64(1) << outbox.Lane(fmt.Sprint("writer", w))
		group.Go(func() {
			for i := range 10 {
				err := b.inTx(t.Context(), func(ctx context.Context) error {
					return b.box.Publish(ctx, "orders", outbox.WithKey(msg(fmt.Sprint(w, "-", i), ""), fmt.Sprint("writer", w)))
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	var got uint64
	done := make(chan struct{})
	go func() { group.Wait(); close(done) }()
	for got != expected {
		select {
		case <-wake.C():
			got |= wake.Take()
		case <-time.After(30 * time.Second):
			t.Fatalf("heard of lanes %b of %b", got, expected)
		}
	}
	<-done
}

func TestOnePublishServesMessagesOfDifferentTransactions(t *testing.T) {
	b := open(t, postgres, outbox.Config{})
	pub := b.box.Publisher()
	undo := errors.New("undo")
	require.NoError(t, b.inTx(t.Context(), func(first context.Context) error {
		require.ErrorIs(t, b.inTx(t.Context(), func(second context.Context) error {
			m1, m2, m3 := msg("1", ""), msg("2", ""), msg("3", "")
			m1.SetContext(first)
			m2.SetContext(second)
			m3.SetContext(first)
			require.NoError(t, pub.Publish("orders", m1, m2, m3))
			return undo
		}), undo)
		return nil
	}))
	rows := b.read("orders")
	require.Len(t, rows, 2)
	require.Equal(t, "1", rows[0].ID)
	require.Equal(t, "3", rows[1].ID)
}

type orderPlaced struct{ Number int }

func TestAnEventBusWorksUnchanged(t *testing.T) {
	b := open(t, sqlite, outbox.Config{})
	bus, err := cqrs.NewEventBusWithConfig(b.box.Publisher(), cqrs.EventBusConfig{
		GeneratePublishTopic: func(cqrs.GenerateEventPublishTopicParams) (string, error) { return "orders.placed", nil },
		Marshaler:            cqrs.JSONMarshaler{},
		Logger:               watermill.NopLogger{},
	})
	require.NoError(t, err)
	require.NoError(t, b.inTx(t.Context(), func(ctx context.Context) error { return bus.Publish(ctx, orderPlaced{7}) }))
	rows := b.read("orders.placed")
	require.Len(t, rows, 1)
	require.JSONEq(t, `{"Number":7}`, string(rows[0].Payload))
	require.ErrorIs(t, bus.Publish(t.Context(), orderPlaced{8}), outbox.ErrNoTransaction)
}

func TestNewNamesEveryMistake(t *testing.T) {
	_, err := outbox.New(nil, outbox.Config{Prefix: "Robert'); DROP", MaxPayload: -1})
	require.ErrorContains(t, err, "needs a database")
	require.ErrorContains(t, err, "Config.Prefix")
	require.ErrorContains(t, err, "Config.MaxPayload")
	_, err = outbox.New(nil, outbox.Config{
		Propagators: []outbox.Propagator{nil},
		Retention:   outbox.Retention{Batch: -1},
		Policies: []outbox.Policy{
			{After: outbox.Keep},
			{Topics: []string{"a"}, After: 7},
			{Topics: []string{"a*"}},
			{Topics: []string{""}},
			{Topics: []string{"b"}, Retention: -1},
			{Topics: []string{"c"}, After: outbox.AwaitConfirmation},
			{Topics: []string{"d"}, After: outbox.Keep, Groups: []string{"g"}},
			{Topics: []string{"e"}, After: outbox.AwaitConfirmation, Groups: []string{"g", "g", ""}, Deadline: time.Hour, MaxAge: time.Minute},
		},
	})
	for _, want := range []string{
		"Config.Propagators", "Retention", "name topics", `pattern "a*"`, "the pattern is empty", "After(7) is unknown", "must not be negative", "needs Groups",
		"only for AwaitConfirmation", "named twice", "a group is empty", "shorter than Deadline",
	} {
		require.ErrorContains(t, err, want)
	}
}
