package rabbitmq

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/ThreeDotsLabs/watermill-amqp/v3/pkg/amqp"
	"github.com/ThreeDotsLabs/watermill/message"
	amqp091 "github.com/rabbitmq/amqp091-go"

	"github.com/millrace-go/millrace/internal/backoff"
	"github.com/millrace-go/millrace/internal/delivery"
	"github.com/millrace-go/millrace/internal/died"
	"github.com/millrace-go/millrace/internal/meta"
)

const (
	// refusals is how often in a row the broker must turn a subscription away before it dies.
	refusals = 5

	// memory is for how many messages that went back to the queue it is known how often they were
	// nacked.
	memory = 4096
)

// subscription is what one call of Subscribe started. Its loop is the one goroutine that decides;
// others wait and report.
type subscription struct {
	parent *Subscriber
	config Config
	log    *slog.Logger
	params amqp.BuildTopologyParams
	out    chan *message.Message

	ctx    context.Context // ends when messages are no longer to be handed out
	cancel context.CancelFunc
	values context.Context // for the messages' contexts

	session *session // nil while there is none
	window  *window
	nacks   map[string]int // by message id
	backoff backoff.Policy

	opened  chan opened
	settled chan settled
	due     chan *item    // nacked a while ago
	ended   chan struct{} // closed when nobody listens to the above any more
}

type opened struct {
	session *session
	err     error
}

type settled struct {
	item  *item
	acked bool
	wait  time.Duration // that the handler asked for with its nack
}

// maxNackHint bounds how long a handler that asks for it (middleware.RetryAfter) can have a message wait.
const maxNackHint = time.Minute

func newSubscription(ctx context.Context, parent *Subscriber, topic string) *subscription {
	config := parent.config
	s := &subscription{
		parent: parent, config: config, log: parent.log.With("topic", topic),
		params: config.queueParams(topic), out: make(chan *message.Message),
		values: context.WithoutCancel(ctx), window: newWindow(), nacks: map[string]int{},
		backoff: backoff.Policy{Base: config.NackDelay, Max: maxNackFactor * config.NackDelay},
		opened:  make(chan opened), settled: make(chan settled), due: make(chan *item), ended: make(chan struct{}),
	}
	ctx, cancel := context.WithCancel(ctx)
	unhook := context.AfterFunc(parent.ctx, cancel)
	s.ctx, s.cancel = ctx, func() { unhook(); cancel() }
	return s
}

func (s *subscription) end() {
	s.cancel()
	close(s.ended)
	close(s.out)
	s.parent.subscriptions.Done()
}

// open makes one attempt to consume.
func (s *subscription) open(ctx context.Context) (*session, error) {
	conn, err := s.parent.connector.get(ctx)
	if err != nil {
		return nil, err
	}
	return openSession(ctx, conn, s.params)
}

// reopen tries until it consumes again, the broker has refused several times in a row, or the
// subscription ends.
func (s *subscription) reopen() {
	pause := backoff.Policy{Base: 100 * time.Millisecond, Max: 5 * time.Second}
	var result opened
	refused := 0
	for try := 1; ; try++ {
		result.session, result.err = s.open(s.ctx)
		if isSetup(result.err) {
			refused++
		} else {
			refused = 0
		}
		if result.err == nil || refused == refusals || s.ctx.Err() != nil {
			break
		}
		if try > 1 || refused > 0 {
			s.log.Warn("rabbitmq: not subscribed", "attempt", try, "error", result.err)
		}
		s.parent.connector.wait(s.ctx)
		backoff.Sleep(s.ctx, pause.Delay(try))
	}
	select {
	case s.opened <- result:
	case <-s.ended:
		if result.err == nil {
			result.session.close()
		}
	}
}

// run is the subscription's life.
func (s *subscription) run(first *session) {
	defer s.end()
	if s.session = first; first == nil {
		s.parent.connector.wg.Go(s.reopen)
	}
	for s.ctx.Err() == nil {
		if err := s.step(); err != nil {
			died.Report(s.values, s.parent.fail(s.params.Topic, err))
			s.cancel()
		}
	}
	s.drain()
}

// step waits for whatever happens next.
func (s *subscription) step() error {
	var out chan *message.Message // nil: nothing to hand out
	var next *message.Message
	if len(s.window.ready) > 0 {
		out, next = s.out, s.message(s.window.ready[0])
	}
	var deliveries <-chan amqp091.Delivery // nil: not consuming
	if s.session != nil {
		deliveries = s.session.deliveries
	}
	select {
	case d, open := <-deliveries:
		if open {
			s.arrived(d)
		} else {
			s.lost()
		}
	case out <- next:
		it := s.window.ready[0]
		s.window.handOut()
		s.parent.connector.wg.Go(func() { s.watch(it, next) })
	case done := <-s.settled:
		s.settle(done)
	case it := <-s.due:
		s.retry(it)
	case o := <-s.opened:
		if o.err != nil && s.ctx.Err() == nil {
			return o.err
		}
		s.session = o.session
	case <-s.ctx.Done():
	}
	return nil
}

func (s *subscription) arrived(d amqp091.Delivery) {
	it := &item{session: s.session, delivery: d}
	msg := decode(s.config.AMQP.Marshaler, d)
	it.id, it.key = msg.UUID, msg.Metadata.Get(meta.Key)
	it.nacks = max(s.nacks[it.id], deliveries(d))
	if msg.Metadata.Get(meta.Reason) == meta.Malformed {
		s.log.Warn("rabbitmq: a malformed message", "queue", s.params.QueueName)
	}
	s.window.add(it)
}

// message makes what is handed out of an item, each time anew: a message that was nacked once stays
// nacked.
func (s *subscription) message(it *item) *message.Message {
	if it.msg != nil {
		return it.msg
	}
	it.msg = decode(s.config.AMQP.Marshaler, it.delivery)
	it.msg.UUID = it.id
	if it.delivery.Redelivered || it.nacks > 0 {
		it.msg.Metadata.Set(amqp.MetadataRedeliveredKey, "true")
	}
	var ctx context.Context
	ctx, it.cancel = context.WithCancel(s.values)
	it.msg.SetContext(ctx)
	return it.msg
}

// watch waits for the handler's word, and tells the broker of an ack.
func (s *subscription) watch(it *item, msg *message.Message) {
	done := settled{item: it}
	select {
	case <-msg.Acked():
		done.acked = true
		if err := it.delivery.Ack(false); err != nil {
			s.log.Debug("rabbitmq: ack came too late, the message will come again", "error", err)
		}
	case <-msg.Nacked():
		done.wait = delivery.NackDelay(msg)
	case <-s.ended:
		return
	}
	select {
	case s.settled <- done:
	case <-s.ended:
	}
}

func (s *subscription) settle(done settled) {
	it := done.item
	it.cancel()
	s.window.settle(it)
	switch {
	case done.acked:
		delete(s.nacks, it.id)
		s.window.remove(it)
	case it.session != s.session: // the broker has it back already
		s.window.remove(it)
	case s.config.AMQP.Consume.NoRequeueOnNack:
		_ = it.delivery.Nack(false, false)
		s.window.remove(it)
	default:
		it.nacks++
		time.AfterFunc(max(s.backoff.Ceiling(it.nacks), min(done.wait, maxNackHint)), func() {
			select {
			case s.due <- it:
			case <-s.ended:
			}
		})
	}
}

// retry gives a nacked message its next try.
func (s *subscription) retry(it *item) {
	switch {
	case it.session != s.session: // shed, or to be shed with its session
		s.window.remove(it)
	case it.key != "" && s.config.Concurrency > 1:
		// Through the queue, those of its key that are behind it would overtake it.
		s.window.again(it)
	default:
		s.remember(it)
		_ = it.delivery.Nack(false, true) // an error means that the broker has it back already
		s.window.remove(it)
	}
}

func (s *subscription) remember(it *item) {
	if len(s.nacks) >= memory {
		clear(s.nacks)
	}
	s.nacks[it.id] = it.nacks
}

// lost lets go of a session that ended, and begins a new one. What is with handlers stays there; its
// key waits for it.
func (s *subscription) lost() {
	s.log.Warn("rabbitmq: subscription lost, beginning anew", "queue", s.params.QueueName)
	s.session.close()
	s.session = nil
	s.window.shed()
	s.parent.connector.wg.Go(s.reopen)
}

// drain ends the subscription: what is not handed out goes back to the queue at once, what is may be
// finished.
func (s *subscription) drain() {
	var deliveries <-chan amqp091.Delivery
	if s.session != nil {
		s.session.cancel()
		defer s.session.close()
		deliveries = s.session.deliveries
	}
	for _, it := range s.window.shed() {
		_ = it.delivery.Nack(false, true) // else the end of the channel does it
	}
	timer := time.NewTimer(s.config.CloseTimeout)
	defer timer.Stop()
	for len(s.window.out) > 0 {
		select {
		case d, open := <-deliveries:
			if !open {
				deliveries = nil
				continue
			}
			_ = d.Nack(false, true)
		case done := <-s.settled:
			s.finish(done)
		case <-timer.C:
			s.log.Warn("rabbitmq: handlers did not finish in time", "messages", len(s.window.out),
				"error", fmt.Errorf("CloseTimeout of %s has passed", s.config.CloseTimeout))
			for it := range s.window.out {
				it.cancel()
			}
			return
		}
	}
}

func (s *subscription) finish(done settled) {
	done.item.cancel()
	s.window.settle(done.item)
	if !done.acked {
		_ = done.item.delivery.Nack(false, !s.config.AMQP.Consume.NoRequeueOnNack)
	}
}
