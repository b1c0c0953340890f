package outbox_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	wsql "github.com/ThreeDotsLabs/watermill-sql/v4/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/internal/meta"
	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/outbox"
)

// adapters are what watermill-sql needs for each database.
var adapters = map[string]struct {
	schema  wsql.SchemaAdapter
	offsets wsql.OffsetsAdapter
}{
	"pgx":      {outbox.PostgreSQLSchema{}, outbox.PostgreSQLOffsets{}},
	"postgres": {outbox.PostgreSQLSchema{}, outbox.PostgreSQLOffsets{}},
	"mysql":    {outbox.MySQLSchema{}, outbox.MySQLOffsets{}},
	"sqlite":   {outbox.SQLiteSchema{}, outbox.SQLiteOffsets{}},
}

func TestTheStockPublisherWritesIntoTheOutboxInARawTransaction(t *testing.T) {
	for _, back := range []backend{postgres, postgresPq, sqlite, mariadb} {
		t.Run(back.name, func(t *testing.T) {
			b := open(t, back, outbox.Config{})
			publish := func(ids ...string) error {
				tx, err := b.raw.BeginTx(t.Context(), nil)
				require.NoError(t, err)
				defer tx.Rollback()
				pub, err := wsql.NewPublisher(wsql.TxFromStdSQL(tx), wsql.PublisherConfig{SchemaAdapter: adapters[back.driver].schema}, nil)
				require.NoError(t, err)
				require.NoError(t, pub.Publish("orders"), "nothing is nothing")
				var msgs []*message.Message
				for _, id := range ids {
					m := outbox.WithKey(msg(id, "payload "+id), "k")
					m.Metadata.Set("a", "b")
					msgs = append(msgs, m)
				}
				if err := pub.Publish("orders", msgs...); err != nil {
					return err
				}
				return tx.Commit()
			}
			require.NoError(t, publish("1", "2"))
			require.Error(t, publish("3", ""))
			rows := b.read("orders")
			require.Len(t, rows, 2)
			require.Equal(t, "payload 1", string(rows[0].Payload))
			require.Equal(t, outbox.Lane("k"), rows[1].Lane)
			require.Equal(t, message.Metadata{"a": "b", meta.Key: "k"}, rows[1].Metadata)
		})
	}
}

func TestAStockSubscriberReadsATopicInOrderAndDeletesWhatWasAckedAndNothingElse(t *testing.T) {
	for _, back := range []backend{postgres, postgresPq, mariadb, sqlite} {
		t.Run(back.name, func(t *testing.T) {
			b := open(t, back, outbox.Config{})
			require.NoError(t, b.inTx(t.Context(), func(ctx context.Context) error {
				for i := range 10 {
					if err := b.box.Publish(ctx, "read", msg(fmt.Sprint("id", i), fmt.Sprint(i))); err != nil {
						return err
					}
				}
				return b.box.Publish(ctx, "another", msg("other", ""))
			}))
			deadline, a := time.Second, adapters[back.driver]
			sub, err := wsql.NewSubscriber(wsql.BeginnerFromStdSQL(b.raw), wsql.SubscriberConfig{
				SchemaAdapter: a.schema, OffsetsAdapter: a.offsets, AckDeadline: &deadline,
				PollInterval: 10 * time.Millisecond, InitializeSchema: true,
			}, nil)
			require.NoError(t, err)
			messages, err := sub.Subscribe(t.Context(), "read")
			require.NoError(t, err)
			next := func(i int) *message.Message {
				m := <-messages
				for ; i > 0 && m.UUID == fmt.Sprint("id", i-1); m = <-messages {
					m.Ack() // the first ack came later than the deadline, on a busy machine
				}
				require.Equal(t, fmt.Sprint("id", i), m.UUID)
				require.Equal(t, fmt.Sprint(i), string(m.Payload))
				return m
			}
			for i := range 3 {
				next(i).Ack()
			}
			next(3) // never acked: the deadline ends the batch
			testenv.Eventually(t, 30*time.Second, "the acked messages are deleted", func() bool { return b.count() == 8 })
			require.NoError(t, sub.Close())
			require.Equal(t, 8, b.count(), "what was read but not acked is still there")
		})
	}
}

func TestConsumerGroupsAreRefused(t *testing.T) {
	for _, a := range adapters {
		_, err := a.schema.SelectQuery(wsql.SelectQueryParams{Topic: "t", ConsumerGroup: "g"})
		require.ErrorContains(t, err, "consumer groups")
		_, err = a.offsets.AckMessageQuery(wsql.AckMessageQueryParams{Topic: "t", ConsumerGroup: "g"})
		require.ErrorContains(t, err, "consumer groups")
	}
}
