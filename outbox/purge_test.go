package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/outbox"
	"github.com/millrace-go/millrace/outbox/outboxtest"
)

var keeping = outbox.Config{Policies: []outbox.Policy{
	{Topics: []string{"orders.*"}, After: outbox.Keep, Retention: time.Hour},
	{Topics: []string{"refunds"}, After: outbox.AwaitConfirmation, Groups: []string{"payments", "books"}, Deadline: 2 * time.Hour, MaxAge: 3 * time.Hour},
	{Topics: []string{"short"}, After: outbox.Keep, Retention: time.Microsecond},
	{Topics: []string{"*.placed", "deep.#"}, After: outbox.AwaitConfirmation, Groups: []string{"late"}},
}}

// sends settles all that waits for topics.
func (b *bench) sends(grants []outbox.Grant, topics ...string) {
	b.Helper()
	for _, topic := range topics {
		var refs []outbox.Ref
		for _, r := range b.read(topic) {
			refs = append(refs, r.Ref)
		}
		b.settleAll(grants, refs...)
	}
}

// expire makes it a second ago that the sent messages of a topic need not be kept any more.
func (b *bench) expire(topic string) {
	b.Helper()
	b.exec(b.q(`UPDATE millrace_sent SET expires_at = `+b.in(-1_000_000)+` WHERE topic = $1`), topic)
}

func (b *bench) with(cfg outbox.Config) *bench {
	b.Helper()
	other := *b
	box, err := outbox.New(b.db, cfg)
	require.NoError(b, err)
	other.box = box
	return &other
}

func TestAPolicyIsFrozenInTheMessageWhenItIsPublished(t *testing.T) {
	each(t, func(b *bench) {
		b = b.with(keeping)
		for _, topic := range []string{"orders.placed", "refunds", "plain", "x.placed", "orders", "x.y.placed", "deep.er.and.deeper"} {
			b.publish(topic, msg("of "+topic, "body"))
		}
		later := b.with(outbox.Config{})
		later.sends(later.holder(), "orders.placed", "refunds", "plain", "x.placed", "orders", "x.y.placed", "deep.er.and.deeper")
		sent := b.sent()
		require.Len(b, sent, 4, "a topic that no policy names is deleted")
		slices.SortFunc(sent, func(x, y outboxtest.Sent) int { return int(x.Pos - y.Pos) })
		require.Equal(b, outbox.Keep, sent[0].After, "the first policy that names a topic counts")
		require.InDelta(b, time.Hour.Seconds(), sent[0].Expires.Seconds(), 60)
		require.Zero(b, sent[0].Due)
		require.Equal(b, outbox.AwaitConfirmation, sent[1].After)
		require.InDelta(b, 2*time.Hour.Seconds(), sent[1].Due.Seconds(), 60)
		require.Zero(b, sent[1].Expires)
		require.Equal(b, "deep.er.and.deeper", sent[3].Topic)
		require.InDelta(b, time.Minute.Seconds(), sent[2].Due.Seconds(), 30, "the default")
		var plan string
		require.NoError(b, b.raw.QueryRow(`SELECT plan FROM millrace_sent WHERE topic = 'refunds'`).Scan(&plan))
		require.JSONEq(b, fmt.Sprintf(`{"after":2,"groups":["payments","books"],"deadline":%d,"max_attempts":5,"max_age":%d,"retention":%d}`,
			2*time.Hour, 3*time.Hour, 7*24*time.Hour), plan)

		trace, err := later.box.Find(b.Context(), "of refunds")
		require.NoError(b, err)
		require.Equal(b, outbox.StateSent, trace.Records[0].State)
		require.Equal(b, outbox.AwaitConfirmation, trace.Records[0].After)
		require.Equal(b, "body", string(trace.Records[0].Payload))
	})
}

func TestAKeptMessageCanBeSentAgain(t *testing.T) {
	each(t, func(b *bench) {
		b = b.with(keeping)
		b.publish("orders.x", outbox.WithKey(msg("1", "body"), "k"))
		grants := b.holder()
		b.sends(grants, "orders.x")
		r, err := b.box.Replay(b.Context(), by, outbox.Filter{State: outbox.StateSent, IDs: []string{"1"}}, outbox.Bulk{})
		require.NoError(b, err)
		require.EqualValues(b, 1, r.Done)
		require.Empty(b, b.sent())
		require.Equal(b, "body", string(b.read("orders.x")[0].Payload))
		b.sends(grants, "orders.x")
		require.Len(b, b.sent(), 1, "it is kept again")
	})
}

func TestPurgeDeletesWhatIsOldEnoughAndNeverWhatIsDeadOrUnconfirmed(t *testing.T) {
	each(t, func(b *bench) {
		cfg := keeping
		cfg.Retention = outbox.Retention{Batch: 2, History: 24 * time.Hour}
		b = b.with(cfg)
		for i := range 5 {
			b.publish("short", msg(fmt.Sprint("short", i), ""))
		}
		b.publish("orders.x", msg("long", ""))
		b.publish("refunds", msg("unconfirmed", ""))
		held := b.holding()
		var grants []outbox.Grant
		for _, g := range held {
			grants = append(grants, g)
		}
		b.sends(grants, "short", "orders.x", "refunds")
		b.expire("short")
		b.dies(held, "dead")
		// All that has a time is a year older now, but for what is to be kept for an hour.
		for _, column := range []string{"dead SET died_at", "history SET at"} {
			b.exec(`UPDATE millrace_` + column + ` = ` + b.in(-(365 * 24 * time.Hour).Microseconds()))
		}
		b.exec(`UPDATE millrace_sent SET sent_at = ` + b.in(-(365 * 24 * time.Hour).Microseconds()) + `, due_at = ` + b.in(-(365 * 24 * time.Hour).Microseconds()) + ` WHERE topic = 'refunds'`)
		for id, age := range map[string]time.Duration{"old": 48 * time.Hour, "young": time.Hour, "unconfirmed": 48 * time.Hour} {
			b.exec(b.q(`INSERT INTO millrace_confirmations (id, grp, outcome, error, at) VALUES ($1, 'g', 'done', '', `+b.in(-age.Microseconds())+`)`), id)
		}
		p, err := b.box.Purge(b.Context())
		require.NoError(b, err)
		require.Equal(b, outbox.Purged{Sent: 5, History: 1, Confirmations: 1}, p)
		require.EqualValues(b, 2, b.one(`SELECT count(*) FROM millrace_sent`))
		require.EqualValues(b, 1, b.one(`SELECT count(*) FROM millrace_dead`))
		require.EqualValues(b, 2, b.one(`SELECT count(*) FROM millrace_confirmations`))
		p, err = b.box.Purge(b.Context())
		require.NoError(b, err)
		require.Equal(b, outbox.Purged{}, p)
	})
}

func TestWhatIsPurgedIsArchivedInTheSameTransaction(t *testing.T) {
	each(t, func(b *bench) {
		b.exec(`CREATE TABLE archive (id varchar(64) NOT NULL, body varchar(64) NOT NULL)`)
		cfg := keeping
		refuse := true
		cfg.Retention = outbox.Retention{Batch: 2, Archive: func(ctx context.Context, tx outbox.Executor, records []outbox.Record) error {
			for _, r := range records {
				if _, err := tx.Exec(ctx, b.q(`INSERT INTO archive VALUES ($1, $2)`), r.ID, string(r.Payload)); err != nil {
					return err
				}
			}
			if refuse {
				return errRollback
			}
			return nil
		}}
		b = b.with(cfg)
		for i := range 5 {
			b.publish("short", msg(fmt.Sprint(i), fmt.Sprint("body ", i)))
		}
		b.sends(b.holder(), "short")
		b.expire("short")
		_, err := b.box.Purge(b.Context())
		require.ErrorIs(b, err, errRollback)
		require.EqualValues(b, 5, b.one(`SELECT count(*) FROM millrace_sent`))
		require.Zero(b, b.one(`SELECT count(*) FROM archive`))
		refuse = false
		p, err := b.box.Purge(b.Context())
		require.NoError(b, err)
		require.EqualValues(b, 5, p.Sent)
		require.EqualValues(b, 5, b.one(`SELECT count(*) FROM archive a WHERE body = `+map[bool]string{true: `concat('body ', id)`, false: `'body ' || id`}[b.driver == "mysql"]))
	})
}

func TestAnArchiveThatRefusesKeepsNothingElseFromBeingPurged(t *testing.T) {
	cfg := keeping
	refuses := errors.New("the archive is full")
	cfg.Retention.Archive = func(context.Context, outbox.Executor, []outbox.Record) error { return refuses }
	b := open(t, sqlite, cfg)
	b.publish("short", msg("1", ""))
	held := b.holding()
	b.sends([]outbox.Grant{held[outbox.Lane("1")]}, "short")
	b.expire("short")
	b.dies(held, "2")
	b.exec(`UPDATE millrace_history SET at = ` + b.in(-(365 * 24 * time.Hour).Microseconds()))
	p, err := b.box.Purge(t.Context())
	require.ErrorIs(t, err, refuses)
	require.Equal(t, outbox.Purged{History: 1}, p)
	require.EqualValues(t, 1, b.one(`SELECT count(*) FROM millrace_sent`))
}

func TestRetentionRunsUntilItIsStoppedAndTriesAgain(t *testing.T) {
	cfg := keeping
	calls := 0
	cfg.Retention = outbox.Retention{Every: time.Millisecond, Archive: func(context.Context, outbox.Executor, []outbox.Record) error {
		if calls++; calls < 3 {
			return errors.New("the archive is full")
		}
		return nil
	}}
	b := open(t, sqlite, cfg)
	b.publish("short", msg("1", ""))
	b.sends(b.holder(), "short")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- b.box.RunRetention(ctx) }()
	testenv.Eventually(t, 30*time.Second, "it is purged", func() bool { return b.one(`SELECT count(*) FROM millrace_sent`) == 0 })
	cancel()
	require.NoError(t, <-done)
	require.Equal(t, 3, calls)
}

func TestStatsCountWhatIsThereByTopic(t *testing.T) {
	each(t, func(b *bench) {
		b = b.with(keeping)
		held := b.holding()
		var grants []outbox.Grant
		for _, g := range held {
			grants = append(grants, g)
		}
		v, err := b.box.Stats(b.Context())
		require.NoError(b, err)
		require.Equal(b, outbox.Stats{Replicas: 1}, v.Public())

		b.publish("orders.x", msg("kept", ""))
		b.sends(grants, "orders.x")
		b.dies(held, "dead")
		b.publish("orders", outbox.WithKey(msg("1", ""), "k"), outbox.WithKey(msg("2", ""), "k"), outbox.WithKey(msg("3", ""), "k"))
		b.publish("orders", msg("4", ""), msg("5", ""), outbox.WithDelay(msg("6", ""), time.Hour))
		b.publish("later", outbox.WithDelay(msg("7", ""), time.Hour))
		g, rows := held[outbox.Lane("k")], b.read("orders")
		ok, err := b.box.Store().Refuse(b.Context(), g, outbox.Refused{Ref: rows[0].Ref, Destination: "rabbit", Key: "k", Attempt: 1, RetryIn: time.Hour, Stop: true})
		require.NoError(b, err)
		require.True(b, ok)
		ok, err = b.box.Store().Hold(b.Context(), g, "rabbit", []outbox.Ref{rows[1].Ref, rows[2].Ref})
		require.NoError(b, err)
		require.True(b, ok)
		b.exec(`UPDATE millrace_outbox SET created_at = ` + b.in(-time.Hour.Microseconds()) + ` WHERE id = '5'`)
		b.exec(`UPDATE millrace_outbox SET created_at = ` + b.in(-(2 * time.Hour).Microseconds()) + ` WHERE id = '4'`)
		b.exec(`DELETE FROM millrace_lanes WHERE lane = ` + fmt.Sprint(outbox.Lane("5")))
		require.NoError(b, b.box.Pause(b.Context(), by, outbox.PausedTopic, "orders"))

		v, err = b.box.Stats(b.Context())
		require.NoError(b, err)
		require.Len(b, v.Topics, 3)
		require.InDelta(b, (2 * time.Hour).Seconds(), v.Topics[1].Oldest.Seconds(), 60)
		v.Topics[1].Oldest = 0
		require.Equal(b, []outbox.TopicStats{
			{Topic: "later", Delayed: 1},
			{Topic: "orders", Ready: 2, Delayed: 2, Held: 2, Dead: 1},
			{Topic: "orders.x", Sent: 1},
		}, v.Topics)
		require.EqualValues(b, 6, v.Topics[1].Waiting())
		require.EqualValues(b, 1, v.Uncovered)
		require.Len(b, v.Paused, 1)
		require.False(b, v.Capped)
	})
}
