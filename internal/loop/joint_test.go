package loop_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/internal/confirmation"
	"github.com/millrace-go/millrace/outbox"
)

// counting is a publisher that counts the messages with one confirmation, those with several, and the confirmations.
type counting struct {
	message.Publisher
	alone, joint, words atomic.Int64
}

func (c *counting) PublishBatch(ctx context.Context, topics []string, msgs []*message.Message) []error {
	for _, m := range msgs {
		n := len(confirmation.ParseAll(m.Payload, nil))
		c.words.Add(int64(n))
		if n == 1 {
			c.alone.Add(1)
		} else {
			c.joint.Add(1)
		}
	}
	return c.Publisher.(interface {
		PublishBatch(context.Context, []string, []*message.Message) []error
	}).PublishBatch(ctx, topics, msgs)
}

func TestConfirmationsThatTravelTogetherEndTheirMessages(t *testing.T) {
	const messages = 500
	eachBroker(t, func(t *testing.T, b *broker) {
		l := newLoop(t, b, outbox.Policy{Deadline: time.Hour})
		c := &counting{Publisher: b.pub}
		l.start(c)
		l.publish(0, messages)
		l.finished(messages)
		require.Equal(t, messages, l.one(l.consumer, `SELECT count(*) FROM effects`))
		require.Equal(t, messages, l.one(l.producer, `SELECT count(*) FROM millrace_sent WHERE state = 'done'`))
		t.Logf("%d confirmations: %d alone, the others in %d messages", c.words.Load(), c.alone.Load(), c.joint.Load())
		require.EqualValues(t, messages, c.words.Load(), "nothing had to be said twice")
		require.Positive(t, c.joint.Load())
	})
}

// One after the other they would take seconds, with a database that is 2 ms away, and a broker waits for its
// acknowledgement.
func TestAMessageOfManyConfirmationsCostsFewRoundTrips(t *testing.T) {
	for name, c := range map[string]*consumer{"pgxtx": newPgxConsumer(t, 0), "database/sql": newSQLConsumer(t, 0)} {
		t.Run(name, func(t *testing.T) {
			box, err := outbox.New(c.db, outbox.Config{AllowOutsideTx: true, Policies: []outbox.Policy{{
				Topics: []string{"orders"}, After: outbox.AwaitConfirmation, Groups: []string{group},
			}}})
			require.NoError(t, err)
			store := box.Store()
			require.NoError(t, store.Join(t.Context(), "forwarder", time.Hour))
			grants, err := store.Claim(t.Context(), "forwarder", outbox.Lanes)
			require.NoError(t, err)
			read := outbox.Read{Topics: []string{"orders"}, MaxRows: confirmation.MaxJoint, MaxBytes: 1 << 20}
			for _, g := range grants {
				read.Lanes = append(read.Lanes, g.Lane)
			}
			least := int64(1 << 62)
			for round := range 10 { // statements are prepared once, and a pool looks after connections that were idle
				var said, msgs []*message.Message
				for i := range confirmation.MaxJoint {
					id := fmt.Sprint(round, "/", i)
					word, err := confirmation.Confirmation{ID: id, Group: group, Outcome: confirmation.Done}.Message()
					require.NoError(t, err)
					said, msgs = append(said, word), append(msgs, message.NewMessage(id, nil))
				}
				require.NoError(t, box.Publisher().Publish("orders", msgs...))
				rows, err := store.Read(t.Context(), read)
				require.NoError(t, err)
				var refs []outbox.Ref
				for _, r := range rows {
					refs = append(refs, r.Ref)
				}
				settled, err := store.Settle(t.Context(), grants, refs)
				require.NoError(t, err)
				require.Len(t, settled.Done, confirmation.MaxJoint)
				joint := confirmation.Join(said)
				joint.SetContext(t.Context())
				before := c.trips.Load()
				require.NoError(t, box.Confirmations(joint))
				least = min(least, c.trips.Load()-before)
				trace, err := box.Find(t.Context(), fmt.Sprint(round, "/", confirmation.MaxJoint-1))
				require.NoError(t, err)
				require.Equal(t, outbox.StateDone, trace.Records[0].State)
			}
			t.Logf("%d round trips", least)
			require.LessOrEqual(t, least, int64(40))
		})
	}
}
