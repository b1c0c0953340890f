package outbox_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/outbox"
)

var by = outbox.By{Who: "ann", Why: "the broker was misconfigured"}

// holder claims all lanes.
func (b *bench) holding() map[int]outbox.Grant {
	b.Helper()
	require.NoError(b, b.box.Store().Join(b.Context(), "holder", time.Hour))
	grants, err := b.box.Store().Claim(b.Context(), "holder", outbox.Lanes)
	require.NoError(b, err)
	held := map[int]outbox.Grant{}
	for _, g := range grants {
		held[g.Lane] = g
	}
	return held
}

// park sets all that waits for a topic aside.
func (b *bench) park(held map[int]outbox.Grant, topic, reason string) {
	b.Helper()
	for _, r := range b.read(topic) {
		ok, err := b.box.Store().Park(b.Context(), held[r.Lane], outbox.Refused{
			Ref: r.Ref, Destination: "rabbit", Key: r.Key, Attempt: 3, Reason: reason, Error: "no queue is bound",
		})
		require.NoError(b, err)
		require.True(b, ok)
	}
}

func (b *bench) dies(held map[int]outbox.Grant, ids ...string) {
	b.Helper()
	for _, id := range ids {
		b.publish("orders", outbox.WithKey(msg(id, "payload of "+id), "k"))
		b.park(held, "orders", "no_route")
	}
}

func (b *bench) list(q outbox.Query) (ids []string) {
	b.Helper()
	for {
		page, err := b.box.List(b.Context(), q)
		require.NoError(b, err)
		for _, r := range page.Records {
			ids = append(ids, r.ID)
		}
		if q.Cursor = page.Next; q.Cursor == 0 {
			return ids
		}
	}
}

func TestDeadMessagesAreListedByFilterAndPage(t *testing.T) {
	each(t, func(b *bench) {
		held := b.holding()
		b.dies(held, "1", "2", "3", "4", "5")
		b.publish("bills", msg("6", "x"))
		b.park(held, "bills", "too_large")
		b.publish("bills", outbox.WithSchedule(outbox.WithDelay(msg("7", ""), time.Hour), "n"))

		require.Equal(b, []string{"1", "2", "3", "4", "5", "6"}, b.list(outbox.Query{Limit: 4}))
		require.Equal(b, []string{"6", "5", "4", "3", "2", "1"}, b.list(outbox.Query{Limit: 5, Newest: true}))
		for want, f := range map[string]outbox.Filter{
			"[1 2 3 4 5]": {Topic: "orders"},
			"[6]":         {Reason: "too_large"},
			"[5 6]":       {IDs: []string{"6", "5", "none"}},
			"[]":          {IDs: []string{}},
			"[7]":         {State: outbox.StateWaiting},
		} {
			require.Equal(b, want, fmt.Sprint(b.list(outbox.Query{Filter: f})))
		}
		require.Empty(b, b.list(outbox.Query{Filter: outbox.Filter{Key: "another", Destination: "rabbit"}}))
		require.Empty(b, b.list(outbox.Query{Filter: outbox.Filter{Until: time.Now().Add(-time.Hour)}}))
		require.Len(b, b.list(outbox.Query{Filter: outbox.Filter{Since: time.Now().Add(-time.Hour), Until: time.Now().Add(time.Hour)}}), 6)
		require.Empty(b, b.list(outbox.Query{Filter: outbox.Filter{State: outbox.StateSent}}))

		page, err := b.box.List(b.Context(), outbox.Query{Filter: outbox.Filter{State: outbox.StateWaiting}})
		require.NoError(b, err)
		r := page.Records[0]
		require.Equal(b, "n", r.Schedule)
		require.InDelta(b, time.Hour.Seconds(), r.Due.Sub(r.CreatedAt).Seconds(), 60)
		require.Nil(b, r.Payload, "a list carries no content")

		for _, q := range []outbox.Query{{Filter: outbox.Filter{State: "lost"}}, {Limit: -1},
			{Filter: outbox.Filter{State: outbox.StateWaiting, Reason: "x"}}, {Filter: outbox.Filter{IDs: make([]string, 1001)}}} {
			_, err = b.box.List(b.Context(), q)
			require.Error(b, err)
		}
	})
}

func TestOneCallTellsWhereAMessageIs(t *testing.T) {
	each(t, func(b *bench) {
		held := b.holding()
		b.publish("orders", outbox.WithKey(msg("1", "body"), "k"))
		r := b.read("orders")[0]
		for attempt := 1; attempt <= 25; attempt++ {
			ok, err := b.box.Store().Refuse(b.Context(), held[r.Lane], outbox.Refused{
				Ref: r.Ref, Destination: "rabbit", Key: "k", Attempt: attempt, Reason: "no_route", Error: "no queue is bound", RetryIn: time.Hour, Stop: true,
			})
			require.NoError(b, err)
			require.True(b, ok)
		}
		trace, err := b.box.Find(b.Context(), "1")
		require.NoError(b, err)
		require.Len(b, trace.Records, 1)
		found := trace.Records[0]
		require.Equal(b, outbox.StateWaiting, found.State)
		require.Equal(b, 25, found.Attempts)
		require.Equal(b, "body", string(found.Payload))
		require.False(b, found.Due.IsZero())
		require.Len(b, trace.History, 20, "it is bounded")
		require.Equal(b, outbox.Event{At: trace.History[1].At, What: "refused", Attempt: 2, Destination: "rabbit", Reason: "no_route", Error: "no queue is bound"}, trace.History[1])

		ok, err := b.box.Store().Park(b.Context(), held[r.Lane], outbox.Refused{Ref: r.Ref, Destination: "rabbit", Attempt: 25, Reason: "no_route"})
		require.NoError(b, err)
		require.True(b, ok)
		trace, err = b.box.Find(b.Context(), "1")
		require.NoError(b, err)
		require.Equal(b, outbox.StateDead, trace.Records[0].State)
		require.Equal(b, "no_route", trace.Records[0].Reason)
		require.Equal(b, "k", trace.Records[0].Metadata.Get("millrace_key"))
		require.Equal(b, "parked", trace.History[20].What, "what ended it is kept")

		_, err = b.box.Find(b.Context(), "2")
		require.ErrorIs(b, err, outbox.ErrNotFound)
	})
}

func TestAMessageThatIsJustMovedIsFoundInOnePlace(t *testing.T) {
	each(t, func(b *bench) {
		held := b.holding()
		b.dies(held, "1")
		stop, done := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(done)
			for {
				select {
				case <-stop:
					return
				default:
				}
				trace, err := b.box.Find(b.Context(), "1")
				if err != nil || len(trace.Records) != 1 {
					b.Errorf("%d records, %v", len(trace.Records), err)
				}
			}
		}()
		for range 20 {
			_, err := b.box.Replay(b.Context(), by, outbox.Filter{}, outbox.Bulk{})
			require.NoError(b, err)
			b.park(held, "orders", "no_route")
		}
		close(stop)
		<-done
	})
}

func TestReplayPutsMessagesBackInOrderWithNewPositions(t *testing.T) {
	each(t, func(b *bench) {
		held := b.holding()
		b.dies(held, "1", "2", "3", "4", "5")
		b.publish("orders", outbox.WithKey(msg("waits", ""), "k"))
		before := b.waiting()[0].Pos

		r, err := b.box.Replay(b.Context(), by, outbox.Filter{Topic: "orders"}, outbox.Bulk{DryRun: true})
		require.NoError(b, err)
		require.Equal(b, outbox.Report{Matched: 5}, r)
		require.Len(b, b.list(outbox.Query{}), 5)

		r, err = b.box.Replay(b.Context(), by, outbox.Filter{Topic: "orders"}, outbox.Bulk{Batch: 2})
		require.NoError(b, err)
		require.Equal(b, outbox.Report{Audit: r.Audit, Matched: 5, Done: 5}, r)
		require.Empty(b, b.list(outbox.Query{}))
		rows := b.read("orders")
		require.Len(b, rows, 6)
		for i, id := range []string{"waits", "1", "2", "3", "4", "5"} {
			require.Equal(b, id, rows[i].ID)
			require.Zero(b, rows[i].Attempts)
		}
		require.Equal(b, before, rows[0].Pos)
		require.Equal(b, "payload of 3", string(rows[3].Payload))
		require.Equal(b, "k", rows[3].Key)
		require.Equal(b, outbox.Lane("k"), rows[3].Lane)

		audits, err := b.box.Audits(b.Context(), 0, 10)
		require.NoError(b, err)
		require.Len(b, audits, 1)
		a := audits[0]
		require.Equal(b, outbox.Audit{Seq: r.Audit, At: a.At, By: by, Action: "replay", Target: a.Target, Affected: 5, Finished: true}, a)
		require.Contains(b, a.Target, `"Topic":"orders"`)
		trace, err := b.box.Find(b.Context(), "3")
		require.NoError(b, err)
		require.Equal(b, "replayed", trace.History[1].What)
		require.Equal(b, "ann", trace.History[1].Who)
	})
}

func TestAReplayDoesNotTakeWhatDiesAgainMeanwhile(t *testing.T) {
	each(t, func(b *bench) {
		held := b.holding()
		b.dies(held, "1", "2", "3")
		ctx, cancel := context.WithCancel(b.Context())
		defer cancel()
		stop := make(chan struct{})
		done := make(chan struct{})
		go func() { // the destination is as broken as before
			defer close(done)
			for {
				select {
				case <-stop:
					return
				default:
				}
				for _, r := range b.read("orders") {
					// What fails now, because both want the same rows, is done in the next round.
					_, _ = b.box.Store().Park(ctx, held[r.Lane], outbox.Refused{Ref: r.Ref, Destination: "rabbit", Key: r.Key, Attempt: 1, Reason: "no_route"})
				}
			}
		}()
		r, err := b.box.Replay(ctx, by, outbox.Filter{}, outbox.Bulk{Batch: 2, PerSecond: 2})
		close(stop)
		<-done
		b.park(held, "orders", "no_route")
		require.NoError(b, err)
		require.EqualValues(b, 3, r.Done)
		require.Len(b, b.list(outbox.Query{}), 3)
	})
}

func TestAReplayLeavesADeadMessageWhoseIdWaits(t *testing.T) {
	each(t, func(b *bench) {
		held := b.holding()
		b.dies(held, "1", "1", "2")
		b.publish("orders", msg("2", ""))
		r, err := b.box.Replay(b.Context(), by, outbox.Filter{}, outbox.Bulk{})
		require.NoError(b, err)
		require.Equal(b, outbox.Report{Audit: r.Audit, Matched: 3, Done: 1, Skipped: 2}, r)
		require.Equal(b, []string{"1", "2"}, b.list(outbox.Query{}))
	})
}

// A sequence counts also in what is rolled back.
func TestAReplayOfManyBatchesPassesOverWhatOthersPublishInTheMeantime(t *testing.T) {
	b := open(t, postgres, outbox.Config{})
	ids := []string{"1", "2", "3", "4", "5", "6"}
	b.dies(b.holding(), ids...)
	for _, id := range ids {
		b.exec(`CREATE SEQUENCE tries_` + id)
	}
	b.exec(`CREATE FUNCTION first_refused() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
		IF nextval('tries_' || NEW.id) = 1 THEN RAISE unique_violation; END IF; RETURN NEW; END $$`)
	b.exec(`CREATE TRIGGER first_refused BEFORE INSERT ON millrace_outbox FOR EACH ROW EXECUTE FUNCTION first_refused()`)
	r, err := b.box.Replay(t.Context(), by, outbox.Filter{}, outbox.Bulk{Batch: 1})
	require.NoError(t, err)
	require.EqualValues(t, len(ids), r.Done)
}

func TestAReplayThatIsStoppedSaysHowFarItCame(t *testing.T) {
	b := open(t, sqlite, outbox.Config{})
	held := b.holding()
	b.dies(held, "1", "2", "3")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var r outbox.Report
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		r, err = b.box.Replay(ctx, by, outbox.Filter{}, outbox.Bulk{Batch: 1, PerSecond: 0.001})
	}()
	testenv.Eventually(t, 30*time.Second, "the first is back", func() bool { return b.count() == 1 })
	cancel()
	<-done
	require.ErrorIs(t, err, context.Canceled)
	require.EqualValues(t, 1, r.Done)
	require.Len(t, b.list(outbox.Query{}), 2)
	audits, err := b.box.Audits(t.Context(), 0, 1)
	require.NoError(t, err)
	require.False(t, audits[0].Finished)
	require.EqualValues(t, 1, audits[0].Affected)
}

func TestDiscardDeletesForGoodAndRemembersWho(t *testing.T) {
	each(t, func(b *bench) {
		b.dies(b.holding(), "1", "2")
		r, err := b.box.Discard(b.Context(), by, outbox.Filter{IDs: []string{"1"}}, outbox.Bulk{})
		require.NoError(b, err)
		require.EqualValues(b, 1, r.Done)
		require.Equal(b, []string{"2"}, b.list(outbox.Query{}))
		trace, err := b.box.Find(b.Context(), "1")
		require.NoError(b, err)
		require.Empty(b, trace.Records)
		last := trace.History[len(trace.History)-1]
		require.Equal(b, "discarded", last.What)
		require.Equal(b, "ann", last.Who)
		_, err = b.box.Discard(b.Context(), by, outbox.Filter{State: outbox.StateSent}, outbox.Bulk{})
		require.Error(b, err)
	})
}

func TestAnEditedMessageGetsANewIdAndALink(t *testing.T) {
	each(t, func(b *bench) {
		b.dies(b.holding(), "1")
		trace, err := b.box.Find(b.Context(), "1")
		require.NoError(b, err)
		dead := trace.Records[0]
		edited := msg("1", "better")
		edited.Metadata = dead.Metadata
		require.ErrorIs(b, b.box.ReplayEdited(b.Context(), by, "1", "", edited), outbox.ErrInvalidMessage)
		edited.UUID = "2"
		require.NoError(b, b.box.ReplayEdited(b.Context(), by, "1", "", edited))
		require.ErrorIs(b, b.box.ReplayEdited(b.Context(), by, "1", "", edited), outbox.ErrNotFound)
		require.Empty(b, b.list(outbox.Query{}))
		row := b.read("orders")[0]
		require.Equal(b, "2", row.ID)
		require.Equal(b, "k", row.Key)
		require.Equal(b, "better", string(row.Payload))
		require.Equal(b, "1", row.Metadata.Get(outbox.MetadataReplaces))
		for id, want := range map[string]string{"1": "edited 2", "2": "edit 1"} {
			trace, err = b.box.Find(b.Context(), id)
			require.NoError(b, err)
			last := trace.History[len(trace.History)-1]
			require.Equal(b, want, last.What+" "+last.Reason)
		}
	})
}

func TestPausesAreStoredWithWhoAndWhy(t *testing.T) {
	each(t, func(b *bench) {
		b.publish("orders", msg("1", ""))
		require.NoError(b, b.box.Pause(b.Context(), by, outbox.PausedTopic, "orders"))
		require.NoError(b, b.box.Pause(b.Context(), outbox.By{Who: "bob", Why: "the same"}, outbox.PausedTopic, "orders"))
		require.NoError(b, b.box.Pause(b.Context(), by, outbox.PausedDestination, "rabbit"))
		pauses, err := b.box.Pauses(b.Context())
		require.NoError(b, err)
		require.Len(b, pauses, 2)
		require.Equal(b, "bob", pauses[1].By.Who)
		require.InDelta(b, 0, time.Since(pauses[1].Since).Seconds(), 60)
		topics, err := b.box.Store().Topics(b.Context())
		require.NoError(b, err)
		require.Equal(b, outbox.Topics{Ready: topics.Ready, Paused: []string{"rabbit"}}, topics)
		require.Empty(b, topics.Ready)
		require.NoError(b, b.box.Resume(b.Context(), by, outbox.PausedTopic, "orders"))
		require.ErrorIs(b, b.box.Resume(b.Context(), by, outbox.PausedTopic, "orders"), outbox.ErrNotFound)
		topics, err = b.box.Store().Topics(b.Context())
		require.NoError(b, err)
		require.Equal(b, []string{"orders"}, topics.Ready)
		audits, err := b.box.Audits(b.Context(), 0, 10)
		require.NoError(b, err)
		require.Len(b, audits, 4)
		require.Error(b, b.box.Pause(b.Context(), by, "planet", "earth"))
		require.Error(b, b.box.Pause(b.Context(), by, outbox.PausedTopic, ""))
	})
}

func TestNothingIsDoneByHandWithoutWhoAndWhy(t *testing.T) {
	b := open(t, sqlite, outbox.Config{})
	b.dies(b.holding(), "1")
	for _, by := range []outbox.By{{}, {Who: "ann"}, {Why: "because"}} {
		_, err := b.box.Replay(t.Context(), by, outbox.Filter{}, outbox.Bulk{})
		require.ErrorContains(t, err, "By.Who")
		_, err = b.box.Discard(t.Context(), by, outbox.Filter{}, outbox.Bulk{})
		require.ErrorContains(t, err, "By.Who")
		require.ErrorContains(t, b.box.ReplayEdited(t.Context(), by, "1", "", msg("2", "")), "By.Who")
		require.ErrorContains(t, b.box.Pause(t.Context(), by, outbox.PausedTopic, "orders"), "By.Who")
	}
	require.Len(t, b.list(outbox.Query{}), 1)
}
