package model_test

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/outbox/half"
)

// The model's seeds found this one: of two replicas that look equally often, the one that looks first has each check, and
// may have nobody to ask.
func TestAReplicaThatHasNobodyToAskDoesNotKeepAnotherFromAsking(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 0)
		w.quiet = true
		d := &deal{id: "h", way: asked}
		w.halves = halves{
			byID: map[string]*deal{"h": d}, maxAge: time.Minute, retention: time.Hour, maxChecks: 1000, timeout: time.Second, batch: 10,
			firstCheck: 900 * time.Millisecond, checkEvery: 2750 * time.Millisecond, // due again right before the third look of the first
		}
		box := w.box()
		ctx, cancel := context.WithCancel(t.Context())
		var work sync.WaitGroup
		defer work.Wait()
		defer cancel()
		replica := func(name string, lacks int) *half.Messages {
			l := w.born(ctx, name, 1)
			l.weaken()
			m := w.halfMessages(l, box, lacks)
			work.Go(func() { _ = m.Run(l.ctx) })
			return m
		}
		const noCheckers = 2
		replica("first", noCheckers)
		time.Sleep(10 * time.Millisecond)
		second := replica("second", 0)

		ctx = w.born(ctx, "producer", 1).ctx
		require.NoError(t, second.Prepare(ctx, plain, message.NewMessage("h", []byte("payload of h"))))
		w.mu.Lock()
		w.happens(d)
		w.mu.Unlock()
		time.Sleep(10 * time.Minute)
		info, err := second.Get(ctx, "h")
		require.NoError(t, err)
		require.Equal(t, half.Committed, info.State)
	})
}
