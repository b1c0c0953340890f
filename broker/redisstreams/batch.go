package redisstreams

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"

	wmredis "github.com/ThreeDotsLabs/watermill-redisstream/pkg/redisstream"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"

	"github.com/millrace-go/millrace/internal/meta"
)

// One script call takes this much at most; the rest follows when it has answered.
const (
	maxChunkEntries = 500
	maxChunkBytes   = 4 << 20
)

// Lua hands a few thousand arguments to a command, no more.
const maxFields = 1000

// entry is one message on its way into a stream.
type entry struct {
	index int    // in the batch
	group string // entries of one group stop at its first failure; "" = none
	args  []any  // field, value, field, value ...
	bytes int
}

// stream is what of a batch goes to one topic.
type stream struct {
	topic   string
	left    []entry
	groups  map[string]string // name of each group in the script
	stopped map[string]bool
}

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
	e, err := encode(b.marshaler, topic, msg)
	b.errs[i] = errPending
	if err != nil {
		b.errs[i] = &refusal{reason: "encoding", err: err}
	}
	e.index = i
	e.group = group
	if group == "" && msg != nil {
		e.group = msg.Metadata[meta.Key]
	}
	s := b.byTopic[topic]
	if s == nil {
		s = &stream{topic: topic, groups: map[string]string{"": ""}, stopped: map[string]bool{}}
		b.byTopic[topic] = s
		b.streams = append(b.streams, s)
	}
	if _, ok := s.groups[e.group]; !ok {
		s.groups[e.group] = strconv.Itoa(len(s.groups))
	}
	s.left = append(s.left, e)
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
	for len(s.left) > 0 && len(c.entries) < maxChunkEntries {
		e := s.left[0]
		if len(c.entries) > 0 && bytes+e.bytes > maxChunkBytes {
			break
		}
		s.left = s.left[1:]
		if e.bytes > limit {
			b.set(e.index, &refusal{reason: "too_large", err: fmt.Errorf("entry of %d bytes, at most %d are taken", e.bytes, limit)})
		}
		switch {
		case s.stopped[e.group]:
			b.set(e.index, errBehind)
		case b.answered(e.index):
			// It was refused: what is behind it in its group must not pass it.
			s.stopped[e.group] = e.group != ""
		default:
			bytes += e.bytes
			c.entries = append(c.entries, e)
			c.args = append(c.args, s.groups[e.group], len(e.args))
			c.args = append(c.args, e.args...)
		}
	}
	if len(c.entries) == 0 {
		return nil
	}
	return c
}

// settle takes the answers of a chunk over.
func (b *batch) settle(c *chunk) {
	if c.err != nil {
		err := classify(c.err)
		for _, e := range c.entries {
			b.set(e.index, err)
		}
		b.giveUp(c.stream, err)
		return
	}
	// stream.stopped is no help here: it knows of failures behind this chunk.
	failed := make(map[string]bool)
	for i, e := range c.entries {
		err := c.failed[i]
		switch {
		case failed[e.group]:
			b.set(e.index, errBehind)
		case err != nil:
			b.set(e.index, classify(err))
			failed[e.group] = e.group != ""
			c.stream.stopped[e.group] = e.group != ""
		default:
			b.set(e.index, nil)
		}
	}
}

// giveUp answers with err for all that is left of the stream.
func (b *batch) giveUp(s *stream, err error) {
	for _, e := range s.left {
		b.set(e.index, err)
	}
	s.left = nil
}
