package redisstreams

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	wmredis "github.com/ThreeDotsLabs/watermill-redisstream/pkg/redisstream"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"

	"github.com/millrace-go/millrace/internal/meta"
)

// One round trip takes this much of a stream at most; the rest follows when it has been answered.
const (
	maxChunkEntries = 500
	maxChunkBytes   = 4 << 20
)

// Lua hands a few thousand arguments to a command, no more.
const maxFields = 1000

// errPending is the answer for a message that there is no answer for yet.
var errPending = errors.New("redisstreams: outcome not known")

func pending(err error) bool { return err == errPending } //nolint:errorlint // it is never wrapped here

// batch is a set of messages and the answer for each.
type batch struct {
	marshaler wmredis.Marshaller
	mu        sync.Mutex // guards errs: whoever waits may leave before all is answered
	errs      []error
	streams   []*stream
	byTopic   map[string]*stream
	largest   int
}

func newBatch(m wmredis.Marshaller, n int) *batch {
	return &batch{marshaler: m, errs: make([]error, n), byTopic: make(map[string]*stream)}
}

// add encodes the message, which is not looked at again after that. group "" stands for the message's key.
func (b *batch) add(i int, topic, group string, msg *message.Message) {
	s := b.byTopic[topic]
	if s == nil {
		n := 0
		if len(b.streams) == 0 {
			n = len(b.errs) // as a rule, all go to one
		}
		s = newStream(topic, n)
		b.byTopic[topic] = s
		b.streams = append(b.streams, s)
	}
	e, err := encode(b.marshaler, s.arg, msg)
	e.index = i
	b.errs[i] = errPending
	if err != nil {
		b.errs[i] = &refusal{reason: "encoding", err: err}
	}
	if group == "" && msg != nil {
		group = msg.Metadata[meta.Key]
	}
	s.add(e, group)
	b.largest = max(b.largest, e.bytes)
}

// set answers for message i, unless it has its answer.
func (b *batch) set(i int, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if pending(b.errs[i]) {
		b.errs[i] = err
	}
}

// answered reports whether message i has its answer.
func (b *batch) answered(i int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !pending(b.errs[i])
}

// answers returns what is known now, with err for what is not.
func (b *batch) answers(err error) []error {
	b.mu.Lock()
	defer b.mu.Unlock()
	errs := slices.Clone(b.errs)
	for i := range errs {
		if pending(errs[i]) {
			errs[i] = err
		}
	}
	return errs
}

// send adds all that is not refused, each stream's entries in order. One chunk of a stream is under
// way at a time, because only its answer says which groups may go on.
func (b *batch) send(ctx context.Context, client redis.UniversalClient, limit int) {
	if b.largest > smallestBulk && limit == 0 {
		limit = bulkLimit(ctx, client)
	}
	if limit == 0 {
		limit = defaultBulk
	}
	for ctx.Err() == nil {
		var chunks []*chunk
		for _, s := range b.streams {
			if c := b.next(s, limit); c != nil {
				chunks = append(chunks, c)
			}
		}
		if len(chunks) == 0 {
			return
		}
		addAll(ctx, client, chunks)
		for _, c := range chunks {
			b.settle(c)
		}
	}
	err := fmt.Errorf("redisstreams: not sent: %w", context.Cause(ctx))
	for _, s := range b.streams {
		b.giveUp(s, err)
	}
}

// next takes the stream's next chunk; nil if nothing is left.
func (b *batch) next(s *stream, limit int) *chunk {
	c := &chunk{stream: s}
	bytes := 0
	for len(s.left) > 0 && c.len() < maxChunkEntries {
		e := s.left[0]
		if c.len() > 0 && bytes+e.bytes > maxChunkBytes {
			break
		}
		s.left = s.left[1:]
		if e.bytes > limit {
			b.set(e.index, &refusal{reason: "too_large", err: fmt.Errorf("entry of %d bytes, at most %d are taken", e.bytes, limit)})
		}
		switch {
		case s.stopped(e):
			b.set(e.index, errBehind)
		case b.answered(e.index):
			s.stop(e) // It was refused: what is behind it in its group must not pass it.
		default:
			bytes += e.bytes
			c.take(e)
		}
	}
	if c.len() == 0 {
		return nil
	}
	return c
}

// settle takes the answers of a chunk over. What the server or the way to it is to blame for would meet the rest
// of the stream as well, which is not sent then.
func (b *batch) settle(c *chunk) {
	var fault error
	c.each(func(e entry, err error) {
		if err == nil || errors.Is(err, errBehind) {
			b.set(e.index, err)
			return
		}
		err = classify(err)
		b.set(e.index, err)
		c.stream.stop(e)
		if !isRefusal(err) {
			fault = err
		}
	})
	if fault != nil {
		b.giveUp(c.stream, fault)
	}
}

// giveUp answers with err for all that is left of the stream.
func (b *batch) giveUp(s *stream, err error) {
	for _, e := range s.left {
		b.set(e.index, err)
	}
	s.left = nil
}
