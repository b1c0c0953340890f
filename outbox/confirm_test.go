package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/internal/confirmation"
	"github.com/millrace-go/millrace/internal/meta"
	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/outbox"
)

// awaiting is an outbox whose messages are to be confirmed by billing and stock, and a forwarder that holds
// all lanes.
type awaiting struct {
	*bench
	store  outbox.Store
	grants map[int]outbox.Grant
}

func eachAwaiting(t *testing.T, policy outbox.Policy, confirming outbox.Confirming, test func(a *awaiting)) {
	policy.Topics, policy.After = []string{"orders"}, outbox.AwaitConfirmation
	if policy.Groups == nil {
		policy.Groups = []string{"billing", "stock"}
	}
	for _, b := range backends {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			a := &awaiting{bench: open(t, b, outbox.Config{Policies: []outbox.Policy{policy}, Confirming: confirming}), grants: map[int]outbox.Grant{}}
			a.store = a.box.Store()
			require.NoError(t, a.store.Join(t.Context(), "forwarder", time.Hour))
			grants, err := a.store.Claim(t.Context(), "forwarder", outbox.Lanes)
			require.NoError(t, err)
			for _, g := range grants {
				a.grants[g.Lane] = g
			}
			test(a)
		})
	}
}

func (a *awaiting) all() (grants []outbox.Grant) {
	for _, g := range a.grants {
		grants = append(grants, g)
	}
	return grants
}

func (a *awaiting) publish(ids ...string) {
	a.Helper()
	require.NoError(a, a.inTx(a.Context(), func(ctx context.Context) error {
		for _, id := range ids {
			if err := a.box.Publish(ctx, "orders", message.NewMessage(id, []byte("payload"))); err != nil {
				return err
			}
		}
		return nil
	}))
}

// read is what waits to be sent.
func (a *awaiting) read() []outbox.Row {
	a.Helper()
	lanes := make([]int, outbox.Lanes)
	for i := range lanes {
		lanes[i] = i
	}
	rows, err := a.store.Read(a.Context(), outbox.Read{Lanes: lanes, Topics: []string{"orders"}, MaxRows: 1000, MaxBytes: 1 << 30})
	require.NoError(a, err)
	return rows
}

// send has the broker confirm what waits, and returns it.
func (a *awaiting) send() []outbox.Row {
	a.Helper()
	rows := a.read()
	refs := make([]outbox.Ref, len(rows))
	for i, r := range rows {
		refs[i] = r.Ref
	}
	settled, err := a.store.Settle(a.Context(), a.all(), refs)
	require.NoError(a, err)
	require.Len(a, settled.Done, len(rows))
	return rows
}

func (a *awaiting) says(group string, outcome confirmation.Outcome, id string) {
	a.Helper()
	msg, err := confirmation.Confirmation{ID: id, Group: group, Outcome: outcome, At: time.Now()}.Message()
	require.NoError(a, err)
	msg.SetContext(a.Context())
	require.NoError(a, a.box.Confirmations(msg))
}

func (a *awaiting) record(id string) outbox.Record {
	a.Helper()
	trace, err := a.box.Find(a.Context(), id)
	require.NoError(a, err)
	require.Len(a, trace.Records, 1, "a message is in one table at a time")
	return trace.Records[0]
}

func (a *awaiting) wantState(id string, state outbox.State) {
	a.Helper()
	require.Equal(a, state, a.record(id).State)
}

// promoted has the forwarder look for what is due, until something waits.
func (a *awaiting) promoted() {
	a.Helper()
	testenv.Eventually(a, 30*time.Second, "something is sent again", func() bool {
		p, err := a.store.Promote(a.Context(), a.all())
		require.NoError(a, err)
		return p.Ready > 0
	})
}

func TestAMessageIsDoneWhenAllGroupsHaveConfirmedIt(t *testing.T) {
	eachAwaiting(t, outbox.Policy{}, outbox.Confirming{}, func(a *awaiting) {
		a.publish("m")
		rows := a.send()
		require.Equal(a, "millrace.confirmations", rows[0].Metadata[meta.Confirm], "it says where to confirm")
		require.Equal(a, "86400000", rows[0].Metadata[meta.MaxAge])
		a.wantState("m", outbox.StateSent)
		a.says("billing", confirmation.Done, "m")
		a.wantState("m", outbox.StateSent)
		a.says("billing", confirmation.Done, "m")
		a.says("nobody asked", confirmation.Done, "m")
		a.wantState("m", outbox.StateSent)
		a.says("stock", confirmation.Done, "m")
		a.wantState("m", outbox.StateDone)
		a.says("stock", confirmation.Failed, "m") // of a copy
		a.wantState("m", outbox.StateDone)
		a.says("billing", confirmation.Done, "unknown")
		require.NoError(a, a.box.Confirmations(message.NewMessage("x", []byte("forged"))), "dropped, never nacked")
	})
}

func TestAConfirmationThatOvertakesTheForwarderCounts(t *testing.T) {
	eachAwaiting(t, outbox.Policy{}, outbox.Confirming{}, func(a *awaiting) {
		a.publish("m")
		a.says("billing", confirmation.Done, "m")
		a.says("stock", confirmation.Done, "m")
		a.wantState("m", outbox.StateWaiting)
		a.send()
		a.wantState("m", outbox.StateDone)
	})
}

func TestConfirmationsAndSettlesAtOnceMissNothing(t *testing.T) {
	messages := 60
	if testenv.Full() {
		messages = 1000
	}
	eachAwaiting(t, outbox.Policy{Deadline: time.Hour}, outbox.Confirming{}, func(a *awaiting) {
		ids := make([]string, messages)
		for i := range ids {
			ids[i] = strconv.Itoa(i)
		}
		a.publish(ids...)
		rows := a.read()
		var group sync.WaitGroup
		for _, who := range []string{"billing", "stock"} {
			group.Go(func() {
				for _, r := range rows {
					a.says(who, confirmation.Done, r.ID)
				}
			})
		}
		group.Go(func() {
			for _, r := range rows {
				if _, err := a.store.Settle(a.Context(), []outbox.Grant{a.grants[r.Lane]}, []outbox.Ref{r.Ref}); err != nil {
					a.Error(err)
				}
			}
		})
		group.Wait()
		for _, id := range ids {
			a.wantState(id, outbox.StateDone)
		}
	})
}

func TestAnOverdueMessageIsSentAgainUntilItIsDead(t *testing.T) {
	var mu sync.Mutex
	var dead []string
	refuse := true
	confirming := outbox.Confirming{OnDead: func(_ context.Context, r outbox.Record) error {
		mu.Lock()
		defer mu.Unlock()
		if refuse {
			refuse = false
			return errors.New("not now")
		}
		dead = append(dead, r.ID+" "+r.Reason+" "+string(r.Payload))
		return nil
	}}
	eachAwaiting(t, outbox.Policy{Deadline: time.Millisecond, MaxAttempts: 3}, confirming, func(a *awaiting) {
		a.publish("m")
		for sending := 1; sending <= 3; sending++ {
			rows := a.send()
			require.Len(a, rows, 1)
			require.Equal(a, "m", rows[0].ID)
			if sending > 1 {
				require.Equal(a, strconv.Itoa(sending), rows[0].Metadata[meta.Sending])
				require.NotEmpty(a, rows[0].Metadata[meta.FirstSent])
			}
			// The groups live: they confirm something else.
			a.says("billing", confirmation.Done, fmt.Sprint("other", sending))
			a.says("stock", confirmation.Done, fmt.Sprint("other", sending))
			if sending < 3 {
				a.promoted()
				a.wantState("m", outbox.StateWaiting)
			}
		}
		testenv.Eventually(a, 30*time.Second, "it is dead", func() bool {
			_, _ = a.store.Promote(a.Context(), a.all()) // an error of OnDead among them
			return a.record("m").State == outbox.StateDead
		})
		r := a.record("m")
		require.Equal(a, outbox.ReasonUnconfirmed, r.Reason)
		require.Contains(a, r.Error, "billing, stock")
		require.Equal(a, 3, r.Attempts)
	})
	t.Cleanup(func() {
		require.Len(t, dead, len(backends))
		require.Equal(t, "m unconfirmed payload", dead[0])
	})
}

func TestWhatOnDeadWritesIsCommittedWithTheDeath(t *testing.T) {
	var box sync.Map // test name -> *outbox.Box, set before OnDead can run
	confirming := outbox.Confirming{OnDead: func(ctx context.Context, r outbox.Record) error {
		b, _ := box.Load(string(r.Payload))
		return b.(*outbox.Box).Publish(ctx, "orders.cancelled", message.NewMessage("instead of "+r.ID, nil))
	}}
	eachAwaiting(t, outbox.Policy{}, confirming, func(a *awaiting) {
		box.Store(a.Name(), a.box)
		require.NoError(a, a.inTx(a.Context(), func(ctx context.Context) error {
			return a.box.Publish(ctx, "orders", message.NewMessage("m", []byte(a.Name())))
		}))
		a.send()
		a.says("stock", confirmation.Failed, "m")
		r := a.record("m")
		require.Equal(a, outbox.StateDead, r.State)
		require.Equal(a, outbox.ReasonFailed, r.Reason)
		require.EqualValues(a, 1, a.one(`SELECT count(*) FROM millrace_outbox WHERE id = 'instead of m' AND topic = 'orders.cancelled'`))
	})
}

// A group that is away would get the same messages again and again, and all of them would be dead at the end.
func TestAGroupThatIsSilentGetsAProbeAndCostsNoAttempts(t *testing.T) {
	eachAwaiting(t, outbox.Policy{Groups: []string{"billing"}, Deadline: 200 * time.Millisecond, MaxAttempts: 2}, outbox.Confirming{}, func(a *awaiting) {
		var ids []string
		for i := range 20 {
			ids = append(ids, fmt.Sprint("m", i))
		}
		a.publish(ids...)
		a.send()
		for range 5 { // more often than MaxAttempts
			a.promoted()
			require.Len(a, a.send(), 1, "one probe, and not everything")
		}
		require.EqualValues(a, 0, a.one(`SELECT count(*) FROM millrace_dead`))
		for _, id := range ids {
			a.says("billing", confirmation.Done, id)
			a.wantState(id, outbox.StateDone)
		}
	})
}

func TestAMessageOlderThanMaxAgeIsDead(t *testing.T) {
	eachAwaiting(t, outbox.Policy{Deadline: time.Millisecond, MaxAge: time.Millisecond}, outbox.Confirming{}, func(a *awaiting) {
		a.publish("m")
		a.send()
		testenv.Eventually(a, 30*time.Second, "it is dead", func() bool {
			_, err := a.store.Promote(a.Context(), a.all())
			require.NoError(a, err)
			a.send() // once more, if the clock has not moved on
			return a.record("m").State == outbox.StateDead
		})
	})
}

// What a group said against a message, and how often it was sent, count for nothing after a replay.
func TestAReplayedMessageBeginsAnew(t *testing.T) {
	eachAwaiting(t, outbox.Policy{Deadline: time.Millisecond, MaxAttempts: 2}, outbox.Confirming{}, func(a *awaiting) {
		a.publish("m")
		a.send()
		a.says("billing", confirmation.Done, "other")
		a.says("stock", confirmation.Done, "other")
		a.promoted()
		a.send()
		a.says("billing", confirmation.Done, "m")
		a.says("stock", confirmation.Failed, "m")
		a.wantState("m", outbox.StateDead)

		report, err := a.box.Replay(a.Context(), outbox.By{Who: "me", Why: "repaired"}, outbox.Filter{IDs: []string{"m"}}, outbox.Bulk{})
		require.NoError(a, err)
		require.EqualValues(a, 1, report.Done)
		require.Len(a, a.send(), 1)
		a.wantState("m", outbox.StateSent)
		a.says("stock", confirmation.Done, "another")
		a.promoted() // it has its attempts again
		require.Len(a, a.send(), 1)
		a.says("stock", confirmation.Done, "m")
		a.wantState("m", outbox.StateDone)
	})
}

func TestALateConfirmationIsRecorded(t *testing.T) {
	var late sync.Map
	confirming := outbox.Confirming{OnLate: func(_ context.Context, r outbox.Record, c outbox.Confirmed) {
		n, _ := late.LoadOrStore(c.Group, new(int))
		*(n.(*int))++
		_ = r
	}}
	a := &awaiting{bench: open(t, sqlite, outbox.Config{Confirming: confirming, Policies: []outbox.Policy{{
		Topics: []string{"orders"}, After: outbox.AwaitConfirmation, Groups: []string{"billing", "stock"},
	}}}), grants: map[int]outbox.Grant{}}
	a.store = a.box.Store()
	require.NoError(t, a.store.Join(t.Context(), "f", time.Hour))
	grants, err := a.store.Claim(t.Context(), "f", outbox.Lanes)
	require.NoError(t, err)
	for _, g := range grants {
		a.grants[g.Lane] = g
	}
	a.publish("m")
	a.send()
	a.says("billing", confirmation.Failed, "m")
	a.wantState("m", outbox.StateDead)
	a.says("stock", confirmation.Done, "m")
	a.wantState("m", outbox.StateDead)
	trace, err := a.box.Find(t.Context(), "m")
	require.NoError(t, err)
	require.Equal(t, "confirmed late", trace.History[len(trace.History)-1].What)
	require.Len(t, trace.Confirmations, 2)
	n, told := late.Load("stock")
	require.True(t, told)
	require.Equal(t, 1, *(n.(*int)))
}

func TestReSendsAreBounded(t *testing.T) {
	eachAwaiting(t, outbox.Policy{Groups: []string{"billing"}, Deadline: time.Millisecond}, outbox.Confirming{PerSecond: 10}, func(a *awaiting) {
		for i := range 100 {
			a.publish(fmt.Sprint("m", i))
		}
		a.send()
		a.says("billing", confirmation.Done, "another") // it lives
		a.promoted()
		require.LessOrEqual(a, len(a.read()), 20)
	})
}

// answers is says, of one sending.
func (a *awaiting) answers(group string, outcome confirmation.Outcome, id string, sending int) {
	a.Helper()
	msg, err := confirmation.Confirmation{ID: id, Group: group, Outcome: outcome, Sending: sending, At: time.Now()}.Message()
	require.NoError(a, err)
	msg.SetContext(a.Context())
	require.NoError(a, a.box.Confirmations(msg))
}

func TestAFailureOfAnEarlierCopyEndsNothing(t *testing.T) {
	eachAwaiting(t, outbox.Policy{Deadline: time.Millisecond, Groups: []string{"billing"}}, outbox.Confirming{}, func(a *awaiting) {
		a.publish("m")
		require.Equal(a, 1, confirmation.Answered(a.send()[0].Metadata))
		a.says("billing", confirmation.Done, "another") // it lives
		a.promoted()
		a.answers("billing", confirmation.Failed, "m", 1)
		a.wantState("m", outbox.StateWaiting)
		require.Equal(a, 2, confirmation.Answered(a.send()[0].Metadata))
		a.wantState("m", outbox.StateSent)
		a.answers("billing", confirmation.Failed, "m", 1)
		a.wantState("m", outbox.StateSent)
		a.answers("billing", confirmation.Failed, "m", 2)
		a.wantState("m", outbox.StateDead)
		a.answers("billing", confirmation.Failed, "m", 1) // does not hide the later one

		report, err := a.box.Replay(a.Context(), outbox.By{Who: "me", Why: "repaired"}, outbox.Filter{IDs: []string{"m"}}, outbox.Bulk{})
		require.NoError(a, err)
		require.EqualValues(a, 1, report.Done)
		a.answers("billing", confirmation.Failed, "m", 2) // late: of what was repaired since
		row := a.send()[0]
		require.Equal(a, 3, confirmation.Answered(row.Metadata))
		require.Empty(a, row.Metadata[meta.FirstSent], "its age begins anew")
		a.wantState("m", outbox.StateSent)
		a.answers("billing", confirmation.Failed, "m", 2)
		a.wantState("m", outbox.StateSent)
		a.answers("billing", confirmation.Done, "m", 1) // what took effect has done so, whatever copy it was
		a.wantState("m", outbox.StateDone)
	})
}

func TestAProbeHasANumberOfItsOwn(t *testing.T) {
	eachAwaiting(t, outbox.Policy{Deadline: time.Millisecond, Groups: []string{"billing"}}, outbox.Confirming{}, func(a *awaiting) {
		a.publish("m")
		a.send()
		for sending := 2; sending < 5; sending++ {
			a.promoted()
			require.Equal(a, sending, confirmation.Answered(a.send()[0].Metadata))
		}
		a.answers("billing", confirmation.Failed, "m", 3)
		a.wantState("m", outbox.StateSent)
		a.answers("billing", confirmation.Failed, "m", 4)
		a.wantState("m", outbox.StateDead)
		require.Equal(a, 1, a.record("m").Attempts, "probes are not counted")
	})
}

// A consumer that does not know the number answers whatever was sent last.
func TestAConfirmationWithoutANumberCountsAsItDid(t *testing.T) {
	eachAwaiting(t, outbox.Policy{Deadline: time.Millisecond, Groups: []string{"billing"}}, outbox.Confirming{}, func(a *awaiting) {
		a.publish("m")
		a.send()
		a.promoted()
		a.says("billing", confirmation.Failed, "m")
		a.wantState("m", outbox.StateWaiting)
		a.send()
		a.wantState("m", outbox.StateDead)
	})
}

func TestConfirmationsThatNobodyHasSignedAreDroppedAndCounted(t *testing.T) {
	t.Parallel()
	retired, current, forged := []byte(strings.Repeat("r", 32)), []byte(strings.Repeat("c", 32)), []byte(strings.Repeat("f", 32))
	b := open(t, sqlite, outbox.Config{Confirming: outbox.Confirming{Keys: [][]byte{current, retired}}})
	hear := func(id string, key []byte) {
		c := confirmation.Confirmation{ID: id, Group: "billing", Outcome: confirmation.Done, At: time.Now()}
		if key != nil {
			c = c.Sign(key)
		}
		msg, err := c.Message()
		require.NoError(t, err)
		msg.SetContext(t.Context())
		require.NoError(t, b.box.Confirmations(msg), "dropped, never nacked")
	}
	hear("signed", current)
	hear("signed with the key before", retired)
	hear("signed with another key", forged)
	hear("not signed", nil)
	require.EqualValues(t, 2, b.one(`SELECT count(*) FROM millrace_confirmations`))
	require.EqualValues(t, 2, b.one(`SELECT count(*) FROM millrace_confirmations WHERE id LIKE 'signed%'`))
	require.EqualValues(t, 2, b.box.Forged())

	_, err := outbox.New(b.db, outbox.Config{Confirming: outbox.Confirming{Keys: [][]byte{current, []byte("short")}}})
	require.ErrorContains(t, err, "Confirming.Keys[1] has 5 bytes")
	require.NotContains(t, err.Error(), "short")
}
