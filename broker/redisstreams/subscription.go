package redisstreams

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"

	"github.com/millrace-go/millrace/internal/backoff"
	handling "github.com/millrace-go/millrace/internal/delivery"
	"github.com/millrace-go/millrace/internal/meta"
)

// maxUnacked bounds how many acknowledged entries may wait for Redis to take their acknowledgement.
const maxUnacked = 1000

// maxNackHint bounds how long a handler that asks for it (middleware.RetryAfter) can have an entry wait.
const maxNackHint = time.Minute

// subscription is one Subscribe call. Its loop alone touches the window; reader, keeper and acker talk to
// Redis and to the loop, and one goroutine waits for the handler of each message.
type subscription struct {
	cfg    Config
	client redis.UniversalClient
	group  group // name "" = no group
	log    *slog.Logger
	out    chan *message.Message

	values context.Context // of Subscribe: its values, not its end
	ctx    context.Context // ends when no more is to be handed out
	cancel context.CancelFunc
	io     context.Context // ends when nothing more is to be said to Redis
	ioEnd  context.CancelFunc
	// abandon is closed when handlers are given up.
	abandon chan struct{}

	room     chan int              // loop to reader: read so many
	read     chan []redis.XMessage // reader to loop
	resolved chan *delivery        // acknowledged
	returned chan *delivery        // nacked
	retry    chan *delivery        // nacked, and has waited
	acks     chan []string         // loop to acker
	acked    chan []string         // acker to loop
	ask      chan chan []string    // keeper to loop: which entries are ours?
	lost     chan []string         // keeper to loop: these are not

	prepared bool   // by Subscribe, else by the reader
	last     string // without a group: read after this id

	window  *window
	unacked map[string]struct{} // done, and Redis does not know yet
	waiting []string            // of unacked, not yet with the acker

	mu    sync.Mutex
	err   error  // why it ended
	floor string // all entries up to this id are acknowledged
}

func newSubscription(ctx context.Context, cfg Config, client redis.UniversalClient, topic, consumer string, closing <-chan struct{}) *subscription {
	s := &subscription{
		cfg: cfg, client: client,
		group:    group{client: client, topic: topic, name: cfg.ConsumerGroup, consumer: consumer},
		log:      cfg.Logger.With("topic", topic, "group", cfg.ConsumerGroup, "consumer", consumer),
		out:      make(chan *message.Message),
		values:   context.WithoutCancel(ctx),
		abandon:  make(chan struct{}),
		room:     make(chan int),
		read:     make(chan []redis.XMessage),
		resolved: make(chan *delivery),
		returned: make(chan *delivery),
		retry:    make(chan *delivery),
		acks:     make(chan []string),
		acked:    make(chan []string),
		ask:      make(chan chan []string),
		lost:     make(chan []string),
		window:   newWindow(cfg.Concurrency),
		unacked:  make(map[string]struct{}),
		floor:    cfg.StartID,
	}
	s.ctx, s.cancel = context.WithCancel(ctx)
	// What was read is finished, acknowledged and given back after ctx has ended.
	s.io, s.ioEnd = context.WithCancel(s.values)
	go func() {
		select {
		case <-closing:
			s.cancel()
		case <-s.ctx.Done():
		}
	}()
	return s
}

// farewell bounds what is said to Redis after the loop has ended.
const farewell = 3 * time.Second

// run does the work of the subscription until it has ended, and returns why it ended by itself.
func (s *subscription) run() error {
	var helpers sync.WaitGroup
	reading := make(chan struct{})
	helpers.Go(func() { defer close(reading); s.readLoop() })
	if s.group.name != "" {
		helpers.Go(s.keepLoop)
		helpers.Go(s.ackLoop)
	}
	s.loop(reading)

	// Calls of go-redis wait for the server whatever becomes of their context. One that hangs is left
	// behind; it ends with the client's own timeout, or with the client.
	through := make(chan struct{})
	go func() {
		defer close(through)
		s.giveBack()
		s.ioEnd()
		helpers.Wait()
	}()
	select {
	case <-through:
	case <-time.After(farewell):
		s.ioEnd()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// loop hands out what is read and takes back what handlers answer. After ctx it goes on until
// handlers, reader and acker are through, or CloseTimeout has passed.
func (s *subscription) loop(reading <-chan struct{}) {
	ending := s.ctx.Done()
	var deadline <-chan time.Time
	for {
		stopping := deadline != nil
		if stopping && reading == nil && s.window.handed == 0 && len(s.unacked) == 0 {
			return
		}
		out, msg := s.offer(stopping)
		room, n := s.wanted(stopping)
		acks, ids := s.toAck()
		select {
		case out <- msg:
			s.await(s.window.hand())
		case room <- n:
		case entries := <-s.read:
			s.take(entries)
		case d := <-s.resolved:
			s.done(d)
		case d := <-s.returned:
			s.window.back(d)
			s.later(d, stopping)
		case d := <-s.retry:
			s.again(d)
		case acks <- ids:
			s.waiting = nil
		case ids := <-s.acked:
			for _, id := range ids {
				delete(s.unacked, id)
			}
		case answer := <-s.ask:
			answer <- s.held()
		case ids := <-s.lost:
			s.lose(ids)
		case <-ending:
			ending = nil
			deadline = time.After(s.cfg.CloseTimeout)
		case <-reading:
			reading = nil
		case <-deadline:
			close(s.abandon)
			return
		}
	}
}

// offer is the channel and the message to be handed out next; a nil channel if there is none.
func (s *subscription) offer(stopping bool) (chan<- *message.Message, *message.Message) {
	d := s.window.next()
	if d == nil || stopping {
		return nil, nil
	}
	if d.cancel == nil {
		ctx, cancel := context.WithCancel(s.values)
		d.cancel = cancel
		d.msg.SetContext(ctx)
	}
	return s.out, d.msg
}

// wanted is the channel by which the reader is told to read, nil if there is no room.
func (s *subscription) wanted(stopping bool) (chan<- int, int) {
	n := s.window.room()
	if n <= 0 || stopping || len(s.unacked) >= maxUnacked {
		return nil, 0
	}
	return s.room, n
}

func (s *subscription) toAck() (chan<- []string, []string) {
	if len(s.waiting) == 0 {
		return nil, nil
	}
	return s.acks, s.waiting
}

// take adds what was read to the window. An entry may come that is here already: the group was made
// again, or this member claimed its own.
func (s *subscription) take(entries []redis.XMessage) {
	for _, e := range entries {
		if d := s.window.all[e.ID]; d != nil {
			d.lost = false
			continue
		}
		if _, ok := s.unacked[e.ID]; ok {
			continue
		}
		if e.Values == nil { // deleted from the stream before anybody handled it
			s.log.WarnContext(s.values, "redisstreams: a pending entry is no longer in the stream", "id", e.ID)
			s.ack(e.ID)
			continue
		}
		msg := decode(s.cfg.Marshaler, s.group.topic, e.ID, e.Values)
		if msg.Metadata.Get(meta.Reason) == meta.Malformed {
			s.log.WarnContext(s.values, "redisstreams: an entry is not a message", "id", e.ID)
		}
		d := &delivery{id: e.ID, key: msg.Metadata.Get(meta.Key), msg: msg}
		if s.cfg.Concurrency == 1 {
			d.key = "all" // one after the other, also when one fails
		}
		s.window.add(d)
	}
}

// await waits in a goroutine of its own for what the handler says of the message.
func (s *subscription) await(d *delivery) {
	go func(msg *message.Message, cancel context.CancelFunc) {
		defer cancel()
		answer := s.returned
		select {
		case <-msg.Acked():
			answer = s.resolved
		case <-msg.Nacked():
		case <-s.abandon:
			return
		}
		select {
		case answer <- d:
		case <-s.abandon:
		}
	}(d.msg, d.cancel)
}

// done ends an entry that was acknowledged. Whoever holds it now: it took effect.
func (s *subscription) done(d *delivery) {
	s.window.remove(d)
	s.ack(d.id)
}

func (s *subscription) ack(id string) {
	if s.group.name == "" {
		return
	}
	s.unacked[id] = struct{}{}
	s.waiting = append(s.waiting, id)
}

// later has a nacked entry wait before it is handed out again.
func (s *subscription) later(d *delivery, stopping bool) {
	hint := handling.NackDelay(d.msg)
	d.msg, d.cancel = d.msg.Copy(), nil
	d.nacks++
	if d.lost {
		s.window.remove(d)
		return
	}
	if stopping {
		return
	}
	wait := backoff.Policy{Base: s.cfg.NackDelay, Max: 32 * s.cfg.NackDelay}.Ceiling(d.nacks)
	wait = max(wait, min(hint, maxNackHint))
	go func() {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-s.ctx.Done():
			return
		}
		select {
		case s.retry <- d:
		case <-s.ctx.Done():
		}
	}()
}

// again makes an entry ready that has waited, unless it was lost meanwhile.
func (s *subscription) again(d *delivery) {
	if s.window.all[d.id] == d {
		s.window.again(d)
	}
}

// held lists the entries that nobody else should take.
func (s *subscription) held() []string {
	ids := make([]string, 0, len(s.window.all)+len(s.unacked))
	for id := range s.window.all {
		ids = append(ids, id)
	}
	for id := range s.unacked {
		ids = append(ids, id)
	}
	return ids
}

// lose drops entries that another member has taken over, which happens when this process stood still for
// MaxIdle. A handler that has one is told by its context; if it acknowledges all the same, that counts.
func (s *subscription) lose(ids []string) {
	for _, id := range ids {
		d := s.window.all[id]
		if d == nil {
			continue
		}
		s.log.WarnContext(s.values, "redisstreams: another member has taken over a message", "id", id)
		if d.handed {
			d.lost = true
			d.cancel()
			continue
		}
		s.forget(d)
	}
}

// forget ends an entry that no handler has.
func (s *subscription) forget(d *delivery) {
	if d.cancel != nil {
		d.cancel()
	}
	s.window.remove(d)
}

// giveBack makes the entries that nobody handled free for others to take at once, and leaves the group.
// What a hanging handler still has is not free before MaxIdle.
func (s *subscription) giveBack() {
	var ids []string
	for id, d := range s.window.all {
		if !d.handed {
			ids = append(ids, id)
			s.forget(d)
		}
	}
	if s.group.name == "" {
		return
	}
	if _, err := s.group.hold(s.io, ids, 10*s.cfg.MaxIdle); err != nil {
		s.log.WarnContext(s.io, "redisstreams: unhandled messages could not be given back; others get them after MaxIdle", "error", err)
		return
	}
	if err := s.group.leave(s.io); err != nil {
		s.log.InfoContext(s.io, "redisstreams: the group could not be left", "error", err)
	}
}

// stopWith ends the subscription for a reason that waiting does not mend.
func (s *subscription) stopWith(err error) {
	s.mu.Lock()
	s.err = err
	s.mu.Unlock()
	s.log.ErrorContext(s.values, "redisstreams: subscription ends", "error", err)
	s.cancel()
}
