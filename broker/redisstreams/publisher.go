package redisstreams

import (
	"context"
	"fmt"
	"sync"

	"github.com/ThreeDotsLabs/watermill/message"
)

// Publisher adds messages to Redis Streams. It is safe for concurrent use.
//
// Redis has the message when Publish returns nil; how well Redis keeps it is a matter of its
// configuration: see Check. Streams are not trimmed.
type Publisher struct {
	cfg    Config
	client connection

	mu     sync.Mutex
	closed bool
	calls  sync.WaitGroup
}

var _ message.Publisher = (*Publisher)(nil)

// NewPublisher checks the configuration. It does not connect: see Check.
func NewPublisher(cfg Config) (*Publisher, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	client, err := cfg.connect()
	if err != nil {
		return nil, err
	}
	return &Publisher{cfg: cfg, client: client}, nil
}

// Publish adds the messages to the stream, in order, and stops at the first that fails; those before it are
// in the stream. It ends with the context of the first message, or after Config.Timeout. An
// error may also mean that the outcome is not known.
func (p *Publisher) Publish(topic string, msgs ...*message.Message) error {
	if len(msgs) == 0 {
		return nil
	}
	b := newBatch(p.cfg.Marshaler, len(msgs))
	for i, msg := range msgs {
		b.add(i, topic, "all", msg)
	}
	ctx := context.Background() // a message without a context; the deadline is set below
	if msgs[0] != nil {
		ctx = msgs[0].Context()
	}
	for i, err := range p.run(ctx, b) {
		if err != nil {
			return fmt.Errorf("message %d of %d to %q: %w", i+1, len(msgs), topic, err)
		}
	}
	return nil
}

// PublishBatch adds msgs[i] to topics[i] and answers for each: nil means that Redis has it. There are always
// len(msgs) answers. Within a stream and key (metadata millrace_key) messages are added in order, and none
// after one that failed; the same holds across batches as long as a key's next messages are given
// only after this call has returned. Concurrent calls must not share a key. Messages of different keys are added
// in no order.
//
// An error with Refused() true (too large, not encodable, the topic is not a stream) is the message's
// own fault. Every other error says that it was not sent, or that the outcome is not known. When ctx
// ends, or Config.Timeout has passed, the call returns at once; what was on its way may still arrive.
func (p *Publisher) PublishBatch(ctx context.Context, topics []string, msgs []*message.Message) []error {
	b := newBatch(p.cfg.Marshaler, len(msgs))
	if len(topics) != len(msgs) {
		for i := range b.errs {
			b.errs[i] = fmt.Errorf("redisstreams: %d topics for %d messages", len(topics), len(msgs))
		}
		return b.errs
	}
	for i, msg := range msgs {
		b.add(i, topics[i], "", msg)
	}
	return p.run(ctx, b)
}

// KeepsKeyOrder reports true: a batch may hold several messages of one key.
func (p *Publisher) KeepsKeyOrder() bool { return true }

// Check asks the server whether it is fit to keep messages. See [Subscriber.Check], which is the same.
func (p *Publisher) Check(ctx context.Context) error {
	return check(ctx, p.client.UniversalClient, p.cfg.Logger)
}

// Close waits for the calls in flight and closes the client if it was made from a URL. A client
// given by the caller is left as it is.
func (p *Publisher) Close() error {
	p.mu.Lock()
	first := !p.closed
	p.closed = true
	p.mu.Unlock()
	p.calls.Wait()
	if !first {
		return nil
	}
	return p.client.close()
}

func (p *Publisher) begin() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.calls.Add(1)
	}
	return !p.closed
}

// run sends the batch and answers when all is known or ctx has ended, whichever is first. go-redis
// waits for a reply whatever becomes of the context, so the wait is left behind, not ended; it lasts
// no longer than the client's own timeouts, because the batch sends nothing more after ctx.
func (p *Publisher) run(ctx context.Context, b *batch) []error {
	if !p.begin() {
		return b.answers(ErrClosed)
	}
	ctx, cancel := context.WithTimeout(ctx, p.cfg.Timeout)
	done := make(chan struct{})
	go func() {
		defer p.calls.Done()
		defer cancel()
		defer close(done)
		b.send(ctx, p.client.UniversalClient, p.cfg.MaxMessageBytes)
	}()
	select {
	case <-done:
		return b.answers(errPending)
	case <-ctx.Done():
		return b.answers(fmt.Errorf("%w: %w", errPending, context.Cause(ctx)))
	}
}
