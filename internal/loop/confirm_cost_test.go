package loop_test

import (
	"fmt"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/internal/meta"
	"github.com/millrace-go/millrace/middleware"
)

// The confirmation is one more row of what goes out with COMMIT: native pgx sends both together. On database/sql COMMIT
// travels alone, and so does what is inserted before it: the confirmation, too, if the handler publishes nothing else.
func TestConfirmingInTheTransactionOfTheHandlerCostsNoRoundTripWhereCommitTakesItAlong(t *testing.T) {
	for name, c := range map[string]struct {
		consumer *consumer
		alone    int64
	}{
		"pgxtx":        {newPgxConsumer(t, 0), 0},
		"database/sql": {newSQLConsumer(t, 0), 1},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, c.alone, c.consumer.tripsOf(t, true, false)-c.consumer.tripsOf(t, false, false))
			require.Zero(t, c.consumer.tripsOf(t, true, true)-c.consumer.tripsOf(t, false, true), "it goes with what the handler publishes")
		})
	}
}

// tripsOf is how many round trips a message costs, which is confirmed or not, and whose handler publishes or not. It is
// the least of several: statements are prepared once, and a pool looks after connections that were idle for a second.
func (c *consumer) tripsOf(t *testing.T, confirming, publishing bool) int64 {
	confirm, err := middleware.Confirm(middleware.ConfirmConfig{Group: group, Publisher: c.box.Publisher(), Outbox: c.box.Publisher()})
	require.NoError(t, err)
	h := confirm(c.transactional(func(msg *message.Message) ([]*message.Message, error) {
		if publishing {
			if err := c.box.Publish(msg.Context(), "news", message.NewMessage("news of "+msg.UUID, nil)); err != nil {
				return nil, err
			}
		}
		return nil, c.handle(msg)
	}))
	least := int64(1 << 62)
	for i := range 10 {
		msg := message.NewMessage(fmt.Sprint(confirming, publishing, i), []byte("payload"))
		msg.SetContext(t.Context())
		if confirming {
			msg.Metadata[meta.Confirm] = "words"
		}
		before := c.trips.Load()
		_, err := h(msg)
		require.NoError(t, err)
		least = min(least, c.trips.Load()-before)
	}
	return least
}
