package redisdedup

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/millrace-go/millrace/internal/cluster"
)

// maxFlights is how many round trips of one server may be under way. More than one, so that a connection
// that hangs does not hold everybody up.
const maxFlights = 4

// maxBatch bounds the calls of one round trip: the server works at them in one go.
const maxBatch = 128

// batcher lets calls that are made at the same time share round trips. A call departs at once if it
// may; while maxFlights are under way, calls gather and depart together as soon as one is back. There
// is no timer, so a call that is alone waits for nobody, and no goroutine but those of the flights.
type batcher struct {
	rdb redis.UniversalClient

	mu      sync.Mutex
	waiting []*call
	flights int
	flying  map[string]struct{} // ids
}

// call is one script on one record.
type call struct {
	ctx context.Context
	// id is the record and its owner. Of one id, one call is under way at a time: a release must not
	// overtake the claim that its owner stopped waiting for.
	id     string
	script *redis.Script
	key    string
	args   []any

	done chan struct{}
	cmd  *redis.Cmd // the answer; read after done
}

// do makes the call and waits for its answer. When ctx ends first, a call that has not departed never
// does; one that has goes on without its caller, and the others on its flight do not notice.
func (b *batcher) do(c *call) (*redis.Cmd, error) {
	if err := c.ctx.Err(); err != nil {
		return nil, err
	}
	c.done = make(chan struct{})
	b.mu.Lock()
	b.waiting = append(b.waiting, c)
	b.depart()
	b.mu.Unlock()
	select {
	case <-c.done:
		return c.cmd, c.cmd.Err()
	case <-c.ctx.Done():
		b.leave(c)
		return nil, c.ctx.Err()
	}
}

func (b *batcher) leave(c *call) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, w := range b.waiting {
		if w == c {
			b.waiting = append(b.waiting[:i], b.waiting[i+1:]...)
			return
		}
	}
}

// depart sends off all who wait and may go.
func (b *batcher) depart() {
	for b.flights < maxFlights {
		batch := b.board()
		if len(batch) == 0 {
			return
		}
		b.flights++
		go b.fly(batch)
	}
}

// board takes those who may go from the waiting.
func (b *batcher) board() (batch []*call) {
	if b.flying == nil {
		b.flying = make(map[string]struct{})
	}
	var stay []*call
	for _, c := range b.waiting {
		if _, busy := b.flying[c.id]; busy || len(batch) == maxBatch {
			stay = append(stay, c)
			continue
		}
		b.flying[c.id] = struct{}{}
		batch = append(batch, c)
	}
	b.waiting = stay
	return batch
}

func (b *batcher) fly(batch []*call) {
	b.send(batch)
	b.land(batch)
	for _, c := range batch {
		close(c.done)
	}
}

func (b *batcher) land(batch []*call) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.flights--
	for _, c := range batch {
		delete(b.flying, c.id)
	}
	b.depart()
}

// send makes one round trip for the batch, and a second one for scripts that the server does not know.
func (b *batcher) send(batch []*call) {
	ctx, cancel := flightContext(batch)
	defer cancel()
	b.pipeline(ctx, batch, (*redis.Script).EvalSha)
	var unknown []*call
	for _, c := range batch {
		if redis.HasErrorPrefix(c.cmd.Err(), "NOSCRIPT") {
			unknown = append(unknown, c)
		}
	}
	if len(unknown) > 0 {
		b.pipeline(ctx, unknown, (*redis.Script).Eval)
	}
	answers := make([]error, len(batch))
	for i, c := range batch {
		answers[i] = c.cmd.Err()
	}
	cluster.Noticed(ctx, b.rdb, answers...)
}

func (b *batcher) pipeline(ctx context.Context, batch []*call,
	eval func(*redis.Script, context.Context, redis.Scripter, []string, ...any) *redis.Cmd) {
	_, err := b.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
		for _, c := range batch {
			c.cmd = eval(c.script, ctx, p, []string{c.key}, c.args...)
		}
		return nil
	})
	// Each command has an error of its own, and that of the pipeline is one of them; but what has
	// neither an error nor an answer was not answered.
	for _, c := range batch {
		if c.cmd.Err() == nil && c.cmd.Val() == nil {
			c.cmd.SetErr(errors.Join(errNoAnswer, err))
		}
	}
}

var errNoAnswer = errors.New("no answer")

// flightContext is for all on the flight, so it lasts as long as the most patient of them waits, and is
// detached from each: one who leaves does not take the others' answers along.
func flightContext(batch []*call) (context.Context, context.CancelFunc) {
	ctx := context.WithoutCancel(batch[0].ctx)
	var latest time.Time
	for _, c := range batch {
		d, ok := c.ctx.Deadline()
		if !ok {
			return ctx, func() {}
		}
		if d.After(latest) {
			latest = d
		}
	}
	return context.WithDeadline(ctx, latest)
}
