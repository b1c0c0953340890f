package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/internal/confirmation"
	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/outbox"
)

// word is what a group says about a message.
func word(group string, outcome confirmation.Outcome, id string) confirmation.Confirmation {
	return confirmation.Confirmation{ID: id, Group: group, Outcome: outcome, Reason: "r", At: time.Now()}
}

func (a *awaiting) joint(words ...confirmation.Confirmation) *message.Message {
	a.Helper()
	var said []*message.Message
	for _, w := range words {
		m, err := w.Message()
		require.NoError(a, err)
		said = append(said, m)
	}
	msg := confirmation.Join(said)
	msg.SetContext(a.Context())
	return msg
}

// sent are so many messages with the broker.
func (a *awaiting) sent(n int) (ids []string) {
	a.Helper()
	for i := range n {
		ids = append(ids, fmt.Sprint("m", i))
	}
	a.publish(ids...)
	require.Len(a, a.send(), n)
	return ids
}

func (a *awaiting) counted(state outbox.State) int {
	a.Helper()
	return int(a.one(a.q(`SELECT count(*) FROM millrace_sent WHERE state = $1`), string(state)))
}

func TestConfirmationsThatTravelTogetherAreAllHeard(t *testing.T) {
	eachAwaiting(t, outbox.Policy{}, outbox.Confirming{}, func(a *awaiting) {
		const n = 120
		ids := a.sent(n)
		a.publish("early")
		words := []confirmation.Confirmation{word("billing", confirmation.Done, "unknown"), word("nobody asked", confirmation.Done, "m0")}
		for _, id := range append(slices.Clone(ids), "early") {
			words = append(words, word("stock", confirmation.Done, id))
		}
		require.NoError(a, a.box.Confirmations(a.joint(words...)))
		require.Equal(a, n, a.counted(outbox.StateSent))

		words = nil
		for i, id := range append(slices.Clone(ids), "early") {
			switch {
			case i%50 == 7:
				words = append(words, word("billing", confirmation.Failed, id))
			case i%50 == 8: // a copy was given up: it has been done
				words = append(words, word("billing", confirmation.Failed, id), word("billing", confirmation.Done, id))
			default:
				words = append(words, word("billing", confirmation.Done, id), word("billing", confirmation.Done, id))
			}
		}
		rand.Shuffle(len(words), func(i, k int) { words[i], words[k] = words[k], words[i] })
		require.LessOrEqual(a, len(words), confirmation.MaxJoint)
		msg := a.joint(words...)
		for range 2 { // a copy changes nothing
			require.NoError(a, a.box.Confirmations(msg))
			require.Equal(a, n-3, a.counted(outbox.StateDone))
			require.Equal(a, 0, a.counted(outbox.StateSent))
			for _, id := range []string{"m7", "m57", "m107"} {
				r := a.record(id)
				require.Equal(a, outbox.StateDead, r.State)
				require.Equal(a, outbox.ReasonFailed, r.Reason)
				require.Contains(a, r.Error, `"billing" gave it up: r`)
			}
			a.wantState("early", outbox.StateWaiting)
		}
		require.EqualValues(a, 2*(n+1)+2, a.one(`SELECT count(*) FROM millrace_confirmations`))
		a.send()
		a.wantState("early", outbox.StateDone)
	})
}

func TestOfConfirmationsThatTravelTogetherTheForgedOnesAreDroppedAndCounted(t *testing.T) {
	t.Parallel()
	key, other := []byte(strings.Repeat("k", 32)), []byte(strings.Repeat("o", 32))
	a := &awaiting{bench: open(t, sqlite, outbox.Config{Confirming: outbox.Confirming{Keys: [][]byte{key}}})}
	msg := a.joint(word("g", confirmation.Done, "1").Sign(key), word("g", confirmation.Done, "forged").Sign(other),
		word("g", confirmation.Done, "unsigned"), word("g", confirmation.Done, "2").Sign(key))
	msg.Payload = slices.Concat([]byte(`[{"id":7},null,`), msg.Payload[1:])
	refuse := a.refuseWords("2")
	require.ErrorContains(t, a.box.Confirmations(msg), "2 confirmations")
	require.Zero(t, a.box.Forged(), "it will come again")
	refuse()
	require.NoError(t, a.box.Confirmations(msg))
	require.EqualValues(t, 2, a.box.Forged())
	require.EqualValues(t, 2, a.one(`SELECT count(*) FROM millrace_confirmations WHERE id IN ('1', '2')`))
	require.EqualValues(t, 2, a.one(`SELECT count(*) FROM millrace_confirmations`))

	none := message.NewMessage("x", []byte(`[`))
	none.SetContext(t.Context())
	require.NoError(t, a.box.Confirmations(none), "dropped, never nacked")
}

// refuseWords has the database fail for the confirmations of a message, until the end.
func (a *awaiting) refuseWords(id string) (end func()) {
	return a.refuse("millrace_confirmations", "INSERT", "NEW.id = '"+id+"'")
}

func (a *awaiting) refuse(table, event, when string) (end func()) {
	a.Helper()
	switch a.driver {
	case "sqlite":
		a.exec(`CREATE TRIGGER refuses BEFORE ` + event + ` ON ` + table + ` WHEN ` + when + ` BEGIN SELECT RAISE(ABORT, 'the disk is full'); END`)
	case "mysql":
		a.exec(`CREATE TRIGGER refuses BEFORE ` + event + ` ON ` + table + ` FOR EACH ROW
			IF ` + when + ` THEN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'the disk is full'; END IF`)
	default:
		a.exec(`CREATE FUNCTION refuses() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'the disk is full'; END $$`)
		a.exec(`CREATE TRIGGER refuses BEFORE ` + event + ` ON ` + table + ` FOR EACH ROW WHEN (` + when + `) EXECUTE FUNCTION refuses()`)
	}
	return func() {
		on := ""
		if a.driver == "pgx" || a.driver == "postgres" {
			on = ` ON ` + table
		}
		a.exec(`DROP TRIGGER refuses` + on)
	}
}

// Half of them are stored then, or half of them are judged.
func TestConfirmationsThatTheDatabaseTakesHalfOfComeAgain(t *testing.T) {
	eachAwaiting(t, outbox.Policy{Groups: []string{"billing"}}, outbox.Confirming{}, func(a *awaiting) {
		const n = 150
		ids := a.sent(n)
		var words []confirmation.Confirmation
		for _, id := range ids {
			words = append(words, word("billing", confirmation.Done, id))
		}
		slices.Sort(ids)
		msg := a.joint(words...)
		for _, half := range []struct{ table, event, when string }{
			{"millrace_confirmations", "INSERT", "NEW.id = '" + ids[100] + "'"},
			{"millrace_sent", "UPDATE", "NEW.id = '" + ids[100] + "'"},
		} {
			end := a.refuse(half.table, half.event, half.when)
			err := a.box.Confirmations(msg)
			require.ErrorContains(a, err, "150 confirmations")
			require.ErrorContains(a, err, "the disk is full")
			require.Positive(a, a.counted(outbox.StateDone))
			require.Less(a, a.counted(outbox.StateDone), n)
			end()
			if a.driver == "pgx" || a.driver == "postgres" {
				a.exec(`DROP FUNCTION refuses`)
			}
		}
		ending, cancel := context.WithCancel(a.Context())
		cancel()
		msg.SetContext(ending)
		require.ErrorIs(a, a.box.Confirmations(msg), context.Canceled)
		msg.SetContext(a.Context())
		require.NoError(a, a.box.Confirmations(msg))
		require.Equal(a, n, a.counted(outbox.StateDone))
	})
}

func TestAMessageThatCannotBeJudgedHoldsUpNoOther(t *testing.T) {
	var mu sync.Mutex
	refuses := map[string]bool{}
	confirming := outbox.Confirming{OnDead: func(_ context.Context, r outbox.Record) error {
		mu.Lock()
		defer mu.Unlock()
		if name := string(r.Payload) + r.ID; !refuses[name] {
			return nil
		}
		return errors.New("not now")
	}}
	refuses["payloadm1"] = true
	eachAwaiting(t, outbox.Policy{Groups: []string{"billing"}}, confirming, func(a *awaiting) {
		ids := a.sent(100)
		a.exec(`UPDATE millrace_sent SET plan = 'damaged' WHERE id = 'm2'`)
		var words []confirmation.Confirmation
		for i, id := range ids {
			outcome := confirmation.Done
			if i == 1 || i == 3 {
				outcome = confirmation.Failed
			}
			words = append(words, word("billing", outcome, id))
		}
		err := a.box.Confirmations(a.joint(words...))
		require.ErrorContains(a, err, "not now")
		require.ErrorContains(a, err, "policy")
		a.wantState("m1", outbox.StateSent)
		a.wantState("m2", outbox.StateSent)
		a.wantState("m3", outbox.StateDead)
		require.Equal(a, 97, a.counted(outbox.StateDone))
	})
}

// The groups confirm the same messages at the same time, each in its own order, and the forwarder moves them meanwhile.
func TestManyHandlersOfConfirmationsAtOnceDoNotWaitForEachOther(t *testing.T) {
	eachAwaiting(t, outbox.Policy{Deadline: time.Millisecond, MaxAttempts: 1000}, outbox.Confirming{PerSecond: 1e6}, func(a *awaiting) {
		n, rounds := 150, 2
		if testenv.Full() {
			rounds = 50
		}
		for round := range rounds {
			ids := make([]string, n)
			for i := range ids {
				ids[i] = fmt.Sprint("r", round, "m", i)
			}
			a.publish(ids...)
			a.send()
			var handlers sync.WaitGroup
			for _, group := range []string{"billing", "stock", "billing", "stock", "other", "other"} {
				var words []confirmation.Confirmation
				for _, i := range rand.Perm(n) {
					words = append(words, word(group, confirmation.Done, ids[i]))
				}
				handlers.Go(func() {
					for part := range slices.Chunk(words, 70) {
						if err := a.box.Confirmations(a.joint(part...)); err != nil {
							a.Error(err)
						}
					}
				})
			}
			handlers.Go(func() {
				for range 5 {
					if _, err := a.store.Promote(a.Context(), a.all()); err != nil {
						a.Error(err)
					}
				}
			})
			handlers.Wait()
			a.send() // what was sent again has been confirmed meanwhile
			require.Equal(a, (round+1)*n, a.counted(outbox.StateDone))
		}
	})
}

// The forwarder has locked what it sends again, and who judges it has to wait for that and for nothing that is waited for.
func TestAFailureThatComesWhileItsMessageIsSentAgainMeetsNoDeadlock(t *testing.T) {
	eachAwaiting(t, outbox.Policy{Deadline: time.Millisecond, MaxAttempts: 1000}, outbox.Confirming{PerSecond: 1e6}, func(a *awaiting) {
		n, rounds := 50, 2
		if testenv.Full() {
			rounds = 50
		}
		for round := range rounds {
			var ids []string
			for i := range n {
				ids = append(ids, fmt.Sprint("r", round, "m", i))
			}
			a.publish(ids...)
			a.send()
			var handlers sync.WaitGroup
			for part := range slices.Chunk(ids, n/5) {
				handlers.Go(func() {
					for _, id := range part {
						w := word("billing", confirmation.Failed, id)
						w.Sending = 1
						if err := a.box.Confirmations(a.joint(w)); err != nil {
							a.Error(err)
						}
					}
				})
			}
			handlers.Go(func() {
				for range 10 {
					if _, err := a.store.Promote(a.Context(), a.all()); err != nil {
						a.Error(err)
					}
				}
			})
			handlers.Wait()
			a.send()
		}
	})
}
