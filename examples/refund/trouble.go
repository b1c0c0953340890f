package main

import (
	"context"
	"sync"

	"github.com/ThreeDotsLabs/watermill/message"
)

// batches is what our publishers can do beside message.Publisher.
type batches interface {
	PublishBatch(ctx context.Context, topics []string, msgs []*message.Message) []error
}

// twice sends every fifth message two times.
type twice struct {
	message.Publisher
	mu sync.Mutex
	n  int
}

// PublishBatch implements forwarder.BatchPublisher.
func (t *twice) PublishBatch(ctx context.Context, topics []string, msgs []*message.Message) []error {
	errs := t.Publisher.(batches).PublishBatch(ctx, topics, msgs)
	t.mu.Lock()
	defer t.mu.Unlock()
	for i, m := range msgs {
		if t.n++; t.n%5 == 0 && errs[i] == nil {
			_ = t.Publish(topics[i], m) // whether it comes twice or not is all the same
		}
	}
	return errs
}

// lossy says that it has sent every third confirmation, and has not.
type lossy struct {
	message.Publisher
	mu   sync.Mutex
	n    int
	lost int
}

// Publish implements message.Publisher.
func (l *lossy) Publish(topic string, msgs ...*message.Message) error {
	l.mu.Lock()
	var kept []*message.Message
	for _, m := range msgs {
		if l.n++; l.n%3 == 0 {
			l.lost++
			continue
		}
		kept = append(kept, m)
	}
	l.mu.Unlock()
	return l.Publisher.Publish(topic, kept...)
}
