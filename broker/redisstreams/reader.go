package redisstreams

import (
	"context"
	"errors"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/millrace-go/millrace/internal/backoff"
	"github.com/millrace-go/millrace/internal/cluster"
)

// patience is how long a mistake of set-up, seen in a running subscription, may pass: a password that
// is being changed, a replica that became the master.
const patience = 10 * time.Second

// between is how long the reader and the acker wait before they try again.
var between = backoff.Policy{Base: 100 * time.Millisecond, Max: 5 * time.Second}

// reader fetches entries for one subscription.
type reader struct {
	*subscription
	// history is the id after which entries are read that are pending for this member and not in the
	// window: of an earlier life, or of a read whose reply was lost. They come before new
	// ones, for they are older. "" = there are none.
	history   string
	cursor    string // of the search for entries that others left
	nextClaim time.Time

	failures int
	since    time.Time // of the mistake of set-up
}

func (s *subscription) readLoop() {
	r := &reader{subscription: s, history: "0", cursor: "0-0"}
	for {
		var n int
		select {
		case n = <-s.room:
		case <-s.ctx.Done():
			return
		}
		entries, err := r.fetch(n)
		if err != nil && !errors.Is(err, redis.Nil) {
			r.failed(err)
			continue
		}
		r.succeeded()
		if len(entries) == 0 {
			continue
		}
		select {
		case s.read <- entries:
		case <-s.io.Done():
			return
		}
	}
}

// fetch returns up to n entries; none after Config.Block.
func (r *reader) fetch(n int) ([]redis.XMessage, error) {
	if !r.prepared {
		if err := r.prepare(r.io); err != nil {
			return nil, err
		}
	}
	if r.group.name == "" {
		return r.readAlone(n)
	}
	if r.history != "" {
		entries, err := r.readGroup(r.history, n, -1)
		if err != nil || len(entries) > 0 {
			r.history = lastOf(entries, r.history)
			return entries, err
		}
		r.history = ""
	}
	if time.Now().After(r.nextClaim) {
		entries, err := r.claim(n)
		if err != nil || len(entries) > 0 {
			return entries, err
		}
	}
	return r.readGroup(">", n, r.cfg.Block)
}

// prepare makes the group, or finds where to begin without one.
func (s *subscription) prepare(ctx context.Context) (err error) {
	switch {
	case s.group.name != "":
		if err = s.group.create(ctx, s.cfg.StartID); err == nil {
			s.observe(ctx)
		}
	case s.cfg.StartID != "$":
		s.last = s.cfg.StartID
	default:
		// $ in every read would skip what comes between two of them.
		s.last, err = lastID(ctx, s.client, s.group.topic)
	}
	s.prepared = err == nil
	return err
}

func (r *reader) readAlone(n int) ([]redis.XMessage, error) {
	cmd := r.client.XRead(r.io, &redis.XReadArgs{Streams: []string{r.group.topic, r.last}, Count: int64(n), Block: r.cfg.Block})
	entries, err := entriesOf(cmd)
	r.last = lastOf(entries, r.last)
	return entries, err
}

func lastOf(entries []redis.XMessage, otherwise string) string {
	if len(entries) == 0 {
		return otherwise
	}
	return entries[len(entries)-1].ID
}

// readOnce is a read that go-redis does not repeat by itself: if the reply of the first was lost, its
// entries are pending for this member, and the second would bring those behind them first.
type readOnce struct{ *redis.XStreamSliceCmd }

func (readOnce) NoRetry() bool { return true }

// readGroup reads entries after id: ">" for new ones, else those pending for this member. A negative
// block does not wait.
func (r *reader) readGroup(id string, n int, block time.Duration) ([]redis.XMessage, error) {
	args := []any{"xreadgroup", "group", r.group.name, r.group.consumer, "count", n}
	if block >= 0 {
		args = append(args, "block", max(1, block.Milliseconds())) // 0 would be for ever
	}
	args = append(args, "streams", r.group.topic, id)
	cmd := readOnce{redis.NewXStreamSliceCmd(r.io, args...)}
	cmd.SetFirstKeyPos(int8(len(args) - 2))
	_ = r.client.Process(r.io, cmd)
	return entriesOf(cmd.XStreamSliceCmd)
}

func entriesOf(cmd *redis.XStreamSliceCmd) ([]redis.XMessage, error) {
	streams, err := cmd.Result()
	if err != nil || len(streams) == 0 {
		return nil, err
	}
	return streams[0].Messages, nil
}

type claimOnce struct{ *redis.XAutoClaimJustIDCmd }

func (claimOnce) NoRetry() bool { return true }

// claim takes entries over whose member was silent for MaxIdle, looking at one page of the pending ones.
// Ids come first, without values: Redis 6.2 puts a nil where an entry was deleted.
func (r *reader) claim(n int) ([]redis.XMessage, error) {
	cmd := claimOnce{redis.NewXAutoClaimJustIDCmd(r.io, "xautoclaim", r.group.topic, r.group.name, r.group.consumer,
		r.cfg.MaxIdle.Milliseconds(), r.cursor, "count", n, "justid")}
	_ = r.client.Process(r.io, cmd)
	ids, cursor, err := cmd.Result()
	if err != nil {
		return nil, err
	}
	r.cursor = cursor
	if cursor == "0-0" {
		r.nextClaim = time.Now().Add(min(time.Second, r.cfg.MaxIdle/2))
	}
	if len(ids) == 0 {
		return nil, nil
	}
	pipe := r.client.Pipeline()
	found := make([]*redis.XMessageSliceCmd, len(ids))
	for i, id := range ids {
		found[i] = pipe.XRange(r.io, r.group.topic, id, id)
	}
	if _, err := pipe.Exec(r.io); err != nil {
		return nil, err
	}
	entries := make([]redis.XMessage, len(ids))
	for i, id := range ids {
		entries[i] = redis.XMessage{ID: id}
		if one := found[i].Val(); len(one) == 1 {
			entries[i] = one[0]
		}
	}
	return entries, nil
}

// failed deals with an error and waits before the next try.
func (r *reader) failed(err error) {
	r.history = "0"
	cluster.Noticed(r.io, r.client, err)
	if isNoGroup(err) && r.group.name != "" {
		r.mu.Lock()
		floor := r.floor
		r.mu.Unlock()
		if err = r.group.recreate(r.io, floor); err == nil {
			r.log.WarnContext(r.io, "redisstreams: the consumer group was lost and was made again", "after", floor)
			return
		}
	}
	err = subscribeError(err)
	if !isSetup(err) {
		r.since = time.Time{}
	} else if r.since.IsZero() {
		r.since = time.Now()
	} else if time.Since(r.since) > patience {
		r.stopWith(err)
		return
	}
	if r.failures++; r.failures == 1 {
		r.log.WarnContext(r.io, "redisstreams: reading is not possible, trying again", "error", err)
	}
	backoff.Sleep(r.ctx, between.Delay(r.failures))
}

func (r *reader) succeeded() {
	if r.failures > 0 {
		r.log.InfoContext(r.io, "redisstreams: reading again", "tries", r.failures)
	}
	r.failures, r.since = 0, time.Time{}
}
