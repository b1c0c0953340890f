package outbox_test

import (
	"context"
	"testing"
	"time"

	wsql "github.com/ThreeDotsLabs/watermill-sql/v4/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/components/delay"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/outbox"
)

// wait is what a row waits for still, in microseconds by the database's clock, or 0.
func (b *bench) wait(id string) time.Duration {
	b.Helper()
	until := map[string]string{
		"mysql":  `TIMESTAMPDIFF(MICROSECOND, UTC_TIMESTAMP(6), due_at)`,
		"sqlite": `due_at - CAST(unixepoch('subsec') * 1000000 AS INTEGER)`,
	}[b.driver]
	if until == "" {
		until = `(extract(epoch FROM due_at - clock_timestamp()) * 1000000)::bigint`
	}
	return time.Duration(b.one(b.q(`SELECT COALESCE(`+until+`, 0) FROM millrace_outbox WHERE id = $1`), id)) * time.Microsecond
}

func TestADelayedMessageIsNotReadyAndDueByTheClockOfTheDatabase(t *testing.T) {
	each(t, func(b *bench) {
		watermills := msg("watermill", "")
		delay.Message(watermills, delay.For(90*time.Minute))
		past := msg("past", "")
		delay.Message(past, delay.Until(time.Now().Add(-time.Hour)))
		until := msg("until", "")
		until.Metadata.Set(delay.DelayedUntilKey, time.Now().Add(20*time.Minute).Format(time.RFC3339Nano))
		both := outbox.WithDelay(msg("both", ""), 3*time.Hour)
		delay.Message(both, delay.For(time.Minute))
		require.NoError(b, b.inTx(b.Context(), func(ctx context.Context) error {
			return b.box.Publish(ctx, "orders", msg("now", ""), outbox.WithDelay(msg("for", ""), time.Hour),
				outbox.WithDueAt(msg("at", ""), time.Now().Add(2*time.Hour)), watermills, past, until, both,
				outbox.WithDelay(outbox.WithDelay(msg("no", ""), time.Hour), 0),
				outbox.WithDueAt(outbox.WithDelay(msg("last", ""), time.Hour), time.Now().Add(5*time.Hour)))
		}))
		for id, want := range map[string]time.Duration{
			"for": time.Hour, "at": 2 * time.Hour, "watermill": 90 * time.Minute, "until": 20 * time.Minute,
			"both": 3 * time.Hour, "last": 5 * time.Hour,
		} {
			require.InDelta(b, want.Seconds(), b.wait(id).Seconds(), 60, id)
		}
		var ready []string
		for _, r := range b.read("orders") {
			ready = append(ready, r.ID)
			for name := range r.Metadata {
				require.NotContains(b, name, "millrace_")
			}
		}
		require.Equal(b, []string{"now", "past", "no"}, ready)
	})
}

func TestADelayKeepsItsFullResolution(t *testing.T) {
	b := open(t, sqlite, outbox.Config{})
	m := msg("1", "")
	delay.Message(m, delay.For(1500*time.Millisecond))
	require.NoError(t, b.inTx(t.Context(), func(ctx context.Context) error { return b.box.Publish(ctx, "orders", m) }))
	require.EqualValues(t, 1_500_000, b.one(`SELECT due_at - created_at FROM millrace_outbox`))
}

func TestWatermillsDelayPublisherWorksUnchanged(t *testing.T) {
	b := open(t, postgresPool, outbox.Config{})
	pub, err := delay.NewPublisher(b.box.Publisher(), delay.PublisherConfig{AllowNoDelay: true})
	require.NoError(t, err)
	require.NoError(t, b.inTx(t.Context(), func(ctx context.Context) error {
		m := msg("1", "")
		m.SetContext(delay.WithContext(ctx, delay.For(time.Hour)))
		return pub.Publish("orders", m)
	}))
	require.InDelta(t, time.Hour.Seconds(), b.wait("1").Seconds(), 60)
}

func TestADelayThatMakesNoSenseIsRefused(t *testing.T) {
	b := open(t, sqlite, outbox.Config{})
	with := func(name, value string) *message.Message {
		m := msg("1", "")
		m.Metadata[name] = value
		return m
	}
	for want, m := range map[string]*message.Message{
		"negative":            outbox.WithDelay(msg("1", ""), -time.Second),
		"longer than":         outbox.WithDelay(msg("1", ""), 200*365*24*time.Hour),
		"after the year":      outbox.WithDueAt(msg("1", ""), time.Date(9000, 1, 1, 0, 0, 0, 0, time.UTC)),
		"not a duration":      with(delay.DelayedForKey, "soon"),
		"not a time":          with(delay.DelayedUntilKey, "tomorrow"),
		"schedule name has":   outbox.WithSchedule(msg("1", ""), string(make([]byte, 201))),
		"schedule name conta": outbox.WithSchedule(msg("1", ""), "\x00"),
	} {
		err := b.inTx(t.Context(), func(ctx context.Context) error { return b.box.Publish(ctx, "orders", m) })
		require.ErrorIs(t, err, outbox.ErrInvalidMessage)
		require.ErrorContains(t, err, want)
	}
}

// stock publishes through watermill-sql's publisher.
func (b *bench) stock(m *message.Message) error {
	tx, err := b.raw.BeginTx(b.Context(), nil)
	require.NoError(b, err)
	defer tx.Rollback()
	pub, err := wsql.NewPublisher(wsql.TxFromStdSQL(tx), wsql.PublisherConfig{SchemaAdapter: outbox.PostgreSQLSchema{}}, nil)
	require.NoError(b, err)
	if err := pub.Publish("orders", m); err != nil {
		return err
	}
	return tx.Commit()
}

func TestAStockPublisherWritesDelaysButNoNames(t *testing.T) {
	b := open(t, postgres, outbox.Config{})
	require.ErrorIs(t, b.stock(outbox.WithSchedule(msg("1", ""), "n")), outbox.ErrInvalidMessage)
	require.NoError(t, b.stock(outbox.WithDelay(msg("1", ""), time.Hour)))
	require.InDelta(t, time.Hour.Seconds(), b.wait("1").Seconds(), 60)
}
