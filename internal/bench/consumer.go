package main

import (
	"context"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// clock notes when the transaction of each message had committed and when the message arrived.
type clock struct {
	mu        sync.Mutex
	committed []time.Time
	received  []time.Time
}

func newClock(n int) *clock {
	return &clock{committed: make([]time.Time, n), received: make([]time.Time, n)}
}

func (c *clock) commit(seq int, at time.Time) { c.note(c.committed, seq, at) }

func (c *clock) receive(payload []byte, at time.Time) {
	if seq, ok := sequence(payload); ok {
		c.note(c.received, seq, at)
	}
}

func (c *clock) note(list []time.Time, seq int, at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if seq < len(list) && list[seq].IsZero() {
		list[seq] = at
	}
}

// missing counts the messages that were committed and have not come.
func (c *clock) missing() (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range c.committed {
		if !c.committed[i].IsZero() && c.received[i].IsZero() {
			n++
		}
	}
	return n
}

// latencies are those of the messages from number first on. One that has not come counts as from its
// commit until now.
func (c *clock) latencies(first int) (all []time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := first; i < len(c.committed); i++ {
		switch {
		case c.committed[i].IsZero():
		case c.received[i].IsZero():
			all = append(all, time.Since(c.committed[i]))
		default:
			// The consumer may have had it before the producer's goroutine ran again.
			all = append(all, max(0, c.received[i].Sub(c.committed[i])))
		}
	}
	return all
}

// consume receives everything that comes to a queue or stream, with as little between as possible.
// It returns when it listens; the function ends it.
func (b broker) consume(ctx context.Context, each func(payload []byte, at time.Time)) (stop func(), err error) {
	if b.Kind != streams {
		return b.consumeQueue(each)
	}
	client, err := b.redis()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		b.readStream(ctx, client, each)
	}()
	return func() { cancel(); _ = client.Close(); <-done }, nil
}

func (b broker) readStream(ctx context.Context, client *redis.Client, each func([]byte, time.Time)) {
	last := "0"
	for ctx.Err() == nil {
		got, err := client.XRead(ctx, &redis.XReadArgs{Streams: []string{b.Topic, last}, Count: 1000, Block: time.Second}).Result()
		at := time.Now()
		if err != nil || len(got) == 0 {
			continue
		}
		for _, m := range got[0].Messages {
			last = m.ID
			if payload, ok := m.Values["payload"].(string); ok {
				each([]byte(payload), at)
			}
		}
	}
}
