package redisstreams_test

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/broker/redisstreams"
	"github.com/millrace-go/millrace/internal/died"
	"github.com/millrace-go/millrace/internal/testenv"
)

// inGroup is quick as a member of a group.
func inGroup(url string) redisstreams.Config {
	cfg := quick(url)
	cfg.ConsumerGroup = "g"
	return cfg
}

func subscribe(t testing.TB, s *redisstreams.Subscriber, topic string) <-chan *message.Message {
	t.Helper()
	out, err := s.Subscribe(context.Background(), topic)
	require.NoError(t, err)
	return out
}

func publish(t testing.TB, p *redisstreams.Publisher, topic string, msgs ...*message.Message) {
	t.Helper()
	require.NoError(t, p.Publish(topic, msgs...))
}

func numbered(key string, from, to int) []*message.Message {
	var msgs []*message.Message
	for i := from; i < to; i++ {
		msgs = append(msgs, keyed(key, number(i)))
	}
	return msgs
}

// handlers run handle for each message of the subscriptions, each in a goroutine of its own as
// Watermill's router does, until the channels close.
func handlers(handle func(*message.Message) bool, subscriptions ...<-chan *message.Message) {
	for _, messages := range subscriptions {
		go func() {
			for msg := range messages {
				go func() {
					if handle(msg) {
						msg.Ack()
					} else {
						msg.Nack()
					}
				}()
			}
		}()
	}
}

// tally counts what was handled.
type tally struct {
	mu    sync.Mutex
	count map[string]int
}

func (c *tally) add(id string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.count == nil {
		c.count = make(map[string]int)
	}
	c.count[id]++
	return c.count[id]
}

func (c *tally) of(id string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.count[id]
}

func (c *tally) distinct() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.count)
}

func pending(t testing.TB, c *redis.Client, topic string) int64 {
	p, err := c.XPending(context.Background(), topic, "g").Result()
	require.NoError(t, err)
	return p.Count
}

func TestASlowHandlerKeepsItsMessage(t *testing.T) {
	t.Parallel()
	url := testenv.Redis(t)
	topic := testenv.RedisPrefix(t) + "s"
	cfg := inGroup(url)
	cfg.MaxIdle = 9 * time.Second // a member that stands still for the better part of it loses its messages
	a, b := subscribe(t, subscriber(t, cfg), topic), subscribe(t, subscriber(t, cfg), topic)
	var runs tally
	handlers(func(msg *message.Message) bool {
		runs.add(msg.UUID)
		select {
		case <-msg.Context().Done():
		case <-time.After(cfg.MaxIdle + 2*time.Second):
		}
		return true
	}, a, b)
	publish(t, publisher(t, cfg), topic, numbered("", 0, 5)...)
	c := client(t, url)
	testenv.Eventually(t, stall, "all handled and acknowledged", func() bool {
		return runs.distinct() == 5 && pending(t, c, topic) == 0
	})
	for i := range 5 {
		require.Equal(t, 1, runs.of(number(i)))
	}
}

func TestWhatADeadMemberHeldIsTakenOver(t *testing.T) {
	t.Parallel()
	url := testenv.Redis(t)
	topic := testenv.RedisPrefix(t) + "s"
	c := client(t, url)
	cfg := inGroup(url)
	s := subscriber(t, cfg)
	require.NoError(t, s.SubscribeInitialize(topic))
	publish(t, publisher(t, cfg), topic, numbered("k", 0, 50)...)
	read, err := c.XReadGroup(t.Context(), &redis.XReadGroupArgs{Group: "g", Consumer: "dead", Streams: []string{topic, ">"}, Count: 40}).Result()
	require.NoError(t, err)
	require.Len(t, read[0].Messages, 40)
	// An entry that was deleted while it was pending must not be in the way.
	require.NoError(t, c.XDel(t.Context(), topic, read[0].Messages[3].ID).Err())

	var got tally
	handlers(func(msg *message.Message) bool { got.add(msg.UUID); return true }, subscribe(t, s, topic))
	testenv.Eventually(t, stall, "all handled and acknowledged", func() bool {
		return got.distinct() == 49 && pending(t, c, topic) == 0
	})
}

func TestAMemberStartsAgainWithWhatItHeld(t *testing.T) {
	t.Parallel()
	url := testenv.Redis(t)
	topic := testenv.RedisPrefix(t) + "s"
	cfg := inGroup(url)
	cfg.Consumer, cfg.MaxIdle = "stable", time.Hour
	s := subscriber(t, cfg)
	require.NoError(t, s.SubscribeInitialize(topic))
	publish(t, publisher(t, cfg), topic, numbered("k", 0, 60)...)
	_, err := client(t, url).XReadGroup(t.Context(), &redis.XReadGroupArgs{Group: "g", Consumer: "stable-1", Streams: []string{topic, ">"}, Count: 40}).Result()
	require.NoError(t, err)
	out := subscribe(t, s, topic)
	for i := range 60 {
		msg := receive(t, out)
		require.Equal(t, number(i), msg.UUID)
		msg.Ack()
	}
}

func TestALostGroupIsMadeAgainAndNothingIsMissed(t *testing.T) {
	t.Parallel()
	server := testenv.OwnRedis(t)
	c := client(t, server.URL)
	cfg := inGroup(server.URL)
	cfg.MaxIdle = 300 * time.Millisecond
	p := publisher(t, cfg)
	var got tally
	hold := make(chan struct{})
	handlers(func(msg *message.Message) bool {
		if msg.UUID == number(5) {
			<-hold
		}
		got.add(msg.UUID)
		return true
	}, subscribe(t, subscriber(t, cfg), "s"), subscribe(t, subscriber(t, cfg), "s"))

	publish(t, p, "s", numbered("", 0, 10)...)
	testenv.Eventually(t, stall, "all but the held handled", func() bool { return got.distinct() == 9 })
	testenv.Eventually(t, stall, "all but the held acknowledged", func() bool { return pending(t, c, "s") == 1 })
	require.NoError(t, c.XGroupDestroy(t.Context(), "s", "g").Err())
	publish(t, p, "s", numbered("", 10, 20)...)
	testenv.Eventually(t, stall, "what came after the group was destroyed", func() bool { return got.distinct() == 19 })
	close(hold)
	testenv.Eventually(t, stall, "the held one", func() bool { return got.distinct() == 20 })

	require.NoError(t, c.FlushAll(t.Context()).Err())
	publish(t, p, "s", numbered("", 20, 30)...)
	testenv.Eventually(t, stall, "what came after the flush", func() bool { return got.distinct() == 30 })
	testenv.Eventually(t, stall, "all acknowledged", func() bool { return pending(t, c, "s") == 0 })
}

func TestAMessageThatFailsStaysWithItsMemberAndDoesNotSpin(t *testing.T) {
	t.Parallel()
	url := testenv.Redis(t)
	topic := testenv.RedisPrefix(t) + "s"
	cfg := inGroup(url)
	cfg.MaxIdle = 9 * time.Second // a member that stands still for the better part of it loses its messages
	cfg.NackDelay = time.Second
	var got tally
	var members sync.Map
	var all []<-chan *message.Message
	for range 3 {
		all = append(all, subscribe(t, subscriber(t, cfg), topic))
	}
	handlersOf := func(member int) func(*message.Message) bool {
		return func(msg *message.Message) bool {
			got.add(msg.UUID)
			if msg.UUID == "bad" {
				members.Store(member, true)
			}
			return msg.UUID != "bad"
		}
	}
	for i, out := range all {
		handlers(handlersOf(i), out)
	}
	p := publisher(t, cfg)
	start := time.Now()
	publish(t, p, topic, keyed("", "bad"))
	testenv.Eventually(t, stall, "some tries", func() bool { return got.of("bad") >= 5 }) // 1+2+4+8 s
	require.Greater(t, time.Since(start), 14*time.Second)
	publish(t, p, topic, numbered("", 0, 300)...)
	testenv.Eventually(t, stall, "the good ones", func() bool { return got.distinct() == 301 })
	n := 0
	members.Range(func(any, any) bool { n++; return true })
	require.Equal(t, 1, n, "members that met the failing message")
}

func TestWhatIsNoMessageIsDeliveredToBeSetAside(t *testing.T) {
	t.Parallel()
	url := testenv.Redis(t)
	topic := testenv.RedisPrefix(t) + "s"
	cfg := inGroup(url)
	n := writeMalformed(t, url, topic)
	publish(t, publisher(t, cfg), topic, keyed("", "good"))
	out := subscribe(t, subscriber(t, cfg), topic)
	first := receive(t, out)
	require.Equal(t, "malformed", first.Metadata.Get("millrace_reason"))
	require.NotEmpty(t, first.Metadata.Get("millrace_error"))
	require.JSONEq(t, `{"hello":"d29ybGQ="}`, string(first.Payload))
	require.True(t, strings.HasPrefix(first.UUID, topic+"/"), first.UUID)
	id := first.UUID
	first.Nack()
	seen := map[string]string{}
	for len(seen) < n+1 {
		msg := receive(t, out)
		seen[msg.UUID] = msg.Metadata.Get("millrace_reason")
		msg.Ack()
	}
	require.Equal(t, "malformed", seen[id], "the same entry has the same id")
	require.Equal(t, "", seen["good"])
	c := client(t, url)
	testenv.Eventually(t, stall, "all acknowledged", func() bool { return pending(t, c, topic) == 0 })
}

func TestASilentMemberIsRemovedOnlyWithNothingPending(t *testing.T) {
	t.Parallel()
	url := testenv.Redis(t)
	topic := testenv.RedisPrefix(t) + "s"
	c := client(t, url)
	cfg := inGroup(url)
	cfg.ConsumerTimeout = 200 * time.Millisecond
	cfg.MaxIdle = time.Hour
	s := subscriber(t, cfg)
	require.NoError(t, s.SubscribeInitialize(topic))
	publish(t, publisher(t, cfg), topic, keyed("", "held"))
	_, err := c.XReadGroup(t.Context(), &redis.XReadGroupArgs{Group: "g", Consumer: "holder", Streams: []string{topic, ">"}}).Result()
	require.NoError(t, err)
	require.NoError(t, c.XGroupCreateConsumer(t.Context(), topic, "g", "silent").Err())
	names := func() string {
		list, err := c.XInfoConsumers(context.Background(), topic, "g").Result()
		require.NoError(t, err)
		var names []string
		for _, info := range list {
			names = append(names, info.Name)
		}
		return strings.Join(names, " ")
	}
	out := subscribe(t, s, topic)
	testenv.Eventually(t, stall, "the silent member is gone", func() bool { return !strings.Contains(names(), "silent") })
	require.Contains(t, names(), "holder")
	// A living member that was removed because it was quiet goes on.
	publish(t, publisher(t, cfg), topic, keyed("", "later"))
	receive(t, out).Ack()
	require.NoError(t, s.Close())
	require.Equal(t, "holder", names(), "who closes leaves the group")
}

func TestAfterCloseOthersGetTheRestAtOnce(t *testing.T) {
	t.Parallel()
	url := testenv.Redis(t)
	topic := testenv.RedisPrefix(t) + "s"
	cfg := inGroup(url)
	cfg.MaxIdle = time.Hour
	cfg.NackDelay = 10 * time.Second
	s := subscriber(t, cfg)
	out := subscribe(t, s, topic)
	publish(t, publisher(t, cfg), topic, numbered("k", 0, 10)...)
	receive(t, out).Nack() // waits for its next try when the end comes
	require.NoError(t, s.Close())
	start := time.Now()
	other := subscribe(t, subscriber(t, cfg), topic)
	for range 10 {
		receive(t, other).Ack()
	}
	require.Less(t, time.Since(start), 10*time.Minute)
}

func TestWithoutAGroupEverySubscriptionGetsAllThatComes(t *testing.T) {
	t.Parallel()
	url := testenv.Redis(t)
	topic := testenv.RedisPrefix(t) + "s"
	cfg := quick(url)
	p := publisher(t, cfg)
	publish(t, p, topic, keyed("", "before"))
	s := subscriber(t, cfg)
	a, b := subscribe(t, s, topic), subscribe(t, s, topic)
	for i := range 20 {
		publish(t, p, topic, keyed("k", number(i)))
		for _, out := range []<-chan *message.Message{a, b} {
			msg := receive(t, out)
			require.Equal(t, number(i), msg.UUID)
			if i == 7 { // comes again, to this subscription alone
				msg.Nack()
				msg = receive(t, out)
				require.Equal(t, number(i), msg.UUID)
			}
			msg.Ack()
		}
	}
}

func TestMistakesOfSetUpAreErrorsOfSubscribe(t *testing.T) {
	t.Parallel()
	url := testenv.Redis(t)
	topic := testenv.RedisPrefix(t) + "s"
	_, err := subscriber(t, inGroup(strings.Replace(url, "redis://", "redis://nobody:canary@", 1))).Subscribe(t.Context(), topic)
	require.True(t, isSetup(err), err)
	require.NotContains(t, err.Error(), "canary")
	require.NoError(t, client(t, url).Set(t.Context(), topic, "x", 0).Err())
	for _, cfg := range []redisstreams.Config{inGroup(url), quick(url)} {
		_, err = subscriber(t, cfg).Subscribe(t.Context(), topic)
		require.True(t, isSetup(err), err)
		require.ErrorContains(t, err, "not a stream")
	}
}

func TestASubscriptionThatCannotGoOnSaysWhy(t *testing.T) {
	t.Parallel()
	server := testenv.OwnRedis(t)
	c := client(t, server.URL)
	require.NoError(t, c.Do(t.Context(), "ACL", "SETUSER", "app", "on", ">pw", "~*", "+@all").Err())
	cfg := inGroup(strings.Replace(server.URL, "redis://", "redis://app:pw@", 1))
	s := subscriber(t, cfg)
	var told error
	out, err := s.Subscribe(died.With(t.Context(), func(err error) { told = err }), "s")
	require.NoError(t, err)
	require.NoError(t, c.Do(t.Context(), "ACL", "SETUSER", "app", "-xreadgroup").Err())
	select {
	case _, open := <-out:
		require.False(t, open)
	case <-time.After(stall):
		require.Fail(t, "the subscription did not end")
	}
	require.True(t, isSetup(s.Err()), s.Err())
	require.ErrorContains(t, s.Err(), "grant")
	require.Equal(t, s.Err(), told, "a router learns it too")
}

func TestAnOutageOfRedisIsWaitedForWithoutAHotLoop(t *testing.T) {
	t.Parallel()
	server := testenv.OwnRedis(t)
	server.Kill()
	opts, err := redis.ParseURL(server.URL)
	require.NoError(t, err)
	opts.MaxRetries = -1
	c := redis.NewClient(opts)
	defer c.Close()
	var calls atomic.Int64
	c.AddHook(counter{&calls})
	cfg := inGroup("")
	cfg.Client = c
	out := subscribe(t, subscriber(t, cfg), "s") // down already when it begins
	before, start := calls.Load(), time.Now()
	testenv.Eventually(t, stall, "two seconds to pass", func() bool { return time.Since(start) > 2*time.Second })
	n := calls.Load() - before
	require.Less(t, float64(n), 30*time.Since(start).Seconds(), "calls")
	server.Start()
	publish(t, publisher(t, quick(server.URL)), "s", keyed("", "1"))
	require.Equal(t, "1", receive(t, out).UUID)
}

// counter counts the commands of a client.
type counter struct{ n *atomic.Int64 }

func (h counter) DialHook(next redis.DialHook) redis.DialHook { return next }
func (h counter) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error { h.n.Add(1); return next(ctx, cmd) }
}
func (h counter) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error { h.n.Add(1); return next(ctx, cmds) }
}
