package forwarder_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill-amqp/v3/pkg/amqp"
	"github.com/ThreeDotsLabs/watermill/message"
	amqp091 "github.com/rabbitmq/amqp091-go"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/broker/rabbitmq"
	"github.com/millrace-go/millrace/broker/redisstreams"
	"github.com/millrace-go/millrace/forwarder"
	"github.com/millrace-go/millrace/internal/fault/proxy"
	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/outbox"
)

// toRabbit is a publisher to a RabbitMQ, of queues named as their topics unless configured otherwise.
func toRabbit(t *testing.T, cfg rabbitmq.Config) *rabbitmq.Publisher {
	t.Helper()
	if cfg.AMQP.Exchange.GenerateName == nil && !cfg.SkipTopology {
		cfg.AMQP = amqp.NewDurableQueueConfig("")
	}
	pub, err := rabbitmq.NewPublisher(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { _ = pub.Close() })
	return pub
}

// admin is a plain connection to a RabbitMQ.
func admin(t *testing.T, url string) *amqp091.Channel {
	t.Helper()
	conn, err := amqp091.Dial(url)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	ch, err := conn.Channel()
	require.NoError(t, err)
	return ch
}

// take consumes from a queue until so many different messages came, or all that are there, and
// returns their ids in order.
func take(t *testing.T, ch *amqp091.Channel, queue string, distinct int) (ids []string) {
	t.Helper()
	in, err := ch.Consume(queue, queue, true, false, false, false, nil)
	require.NoError(t, err)
	seen := map[string]bool{}
	for len(seen) < distinct {
		select {
		case d := <-in:
			id := fmt.Sprint(d.Headers[amqp.DefaultMessageUUIDHeaderKey])
			ids, seen[id] = append(ids, id), true
		case <-time.After(time.Minute):
			t.Fatalf("%d of %d messages came out of %s", len(seen), distinct, queue)
		}
	}
	require.NoError(t, ch.Cancel(queue, false))
	for d := range in {
		ids = append(ids, fmt.Sprint(d.Headers[amqp.DefaultMessageUUIDHeaderKey]))
	}
	return ids
}

func TestABrokerThatIsKilledUnderLoadCostsTimeOnly(t *testing.T) {
	t.Parallel()
	type broker struct {
		server *testenv.Server
		pub    message.Publisher
		ids    func(l *ledger) []string
	}
	type scene struct {
		name  string
		kills int
		open  func(t *testing.T) broker
	}
	scenes := []scene{
		{"rabbitmq", 3, func(t *testing.T) broker {
			server := testenv.OwnRabbitMQ(t)
			return broker{server, toRabbit(t, rabbitmq.Config{URL: server.URL, Timeout: 5 * time.Second}),
				func(l *ledger) []string { return take(t, admin(t, server.URL), "orders", l.count("ledger")) }}
		}},
		{"redis that syncs each write", 20, func(t *testing.T) broker {
			server := testenv.OwnRedis(t, "--appendfsync", "always")
			pub, err := redisstreams.NewPublisher(redisstreams.Config{URL: server.URL})
			require.NoError(t, err)
			t.Cleanup(func() { _ = pub.Close() })
			return broker{server, pub, func(*ledger) []string { return streamed(t, server.URL, "orders") }}
		}},
	}
	if !testenv.Full() { // RabbitMQ takes its time to start; its own package kills it
		scenes = scenes[1:]
		scenes[0].kills = 3
	}
	for _, c := range scenes {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			l, b := newLedger(t, postgres), c.open(t)
			f, stopForwarder := l.run(b.pub, processConfig)
			stop := l.inBackground(newSeed(t), load{writers: 4, keys: contended, keyed: 40, free: 3, rollbacks: 10, hold: 10 * time.Millisecond})
			for i := range c.kills + 1 {
				before := f.Stats().Settled
				testenv.Eventually(t, 3*time.Minute, fmt.Sprintf("messages flow after %d kills", i), func() bool { return f.Stats().Settled > before+200 })
				if i < c.kills {
					b.server.Kill()
					b.server.Start()
				}
			}
			stop()
			l.settled()
			require.NoError(t, stopForwarder())
			duplicates := l.requireReconciled(b.ids(l))
			require.LessOrEqual(t, duplicates, c.kills*window)
			require.Zero(t, f.Stats().Refused, "an outage is no attempt")
			l.requireNothingParked()
			t.Logf("%d kills, %d committed, %d duplicates", c.kills, len(l.committed), duplicates)
		})
	}
}

// streamed are the ids of a stream, in order.
func streamed(t *testing.T, url, stream string) (ids []string) {
	t.Helper()
	opt, err := redis.ParseURL(url)
	require.NoError(t, err)
	rdb := redis.NewClient(opt)
	defer rdb.Close()
	entries, err := rdb.XRange(context.WithoutCancel(t.Context()), stream, "-", "+").Result()
	require.NoError(t, err)
	for _, e := range entries {
		ids = append(ids, fmt.Sprint(e.Values["_watermill_message_uuid"]))
	}
	return ids
}

func TestABrokerThatFallsSilentCostsTimeOnly(t *testing.T) {
	t.Parallel()
	rounds := 1
	if testenv.Full() {
		rounds = 10
	}
	direct := testenv.RabbitMQ(t)
	u, err := url.Parse(direct)
	require.NoError(t, err)
	p := proxy.New(t, u.Host)
	u.Host = p.Addr
	l := newLedger(t, postgres)
	var unsure atomic.Int64 // answers that did not come, for whatever reason: such a message may come twice
	cfg := processConfig
	cfg.Observers = []forwarder.Observer{{OnPublished: func(_ context.Context, _ forwarder.Batch, answers []forwarder.Answer) {
		for _, a := range answers {
			if a.Outcome == forwarder.Unsure {
				unsure.Add(1)
			}
		}
	}}}
	f, stopForwarder := l.run(toRabbit(t, rabbitmq.Config{URL: u.String(), Timeout: 2 * time.Second}), cfg)
	work := load{writers: 4, keys: contended, keyed: 40, free: 3, rollbacks: 10, hold: 10 * time.Millisecond}
	for range rounds {
		before := f.Stats().Settled
		l.put(t.Context(), newSeed(t), 300, work)
		testenv.Eventually(t, 2*time.Minute, "messages flow", func() bool { return f.Stats().Settled > before })
		p.Blackhole(true)
		l.put(t.Context(), newSeed(t), 500, work) // orders are taken meanwhile
		testenv.Eventually(t, 2*time.Minute, "the forwarder says so", func() bool { return f.Health(t.Context()) != nil })
		require.NotZero(t, l.waiting(), "what was not confirmed stays")
		p.Cut()
		p.Blackhole(false)
	}
	l.settled()
	require.NoError(t, stopForwarder())
	duplicates := l.requireReconciled(take(t, admin(t, direct), "orders", l.count("ledger")))
	require.LessOrEqual(t, duplicates, int(unsure.Load()))
	require.Zero(t, f.Stats().Refused, "silence is no attempt")
	l.requireNothingParked()
	t.Logf("%d rounds, %d committed, %d duplicates", rounds, len(l.committed), duplicates)
}

// publishOne commits one message that is not in the ledger.
func (l *ledger) publishOne(topic string, msg *message.Message) {
	l.Helper()
	require.NoError(l, millrace.InTx(l.Context(), l.db, func(ctx context.Context, _ *millrace.Tx) error {
		return l.box.Publish(ctx, topic, msg)
	}))
}

// TestOfAThousandMessagesOnlyTheOneThatCannotBeSentIsRefused has it stand among the others, and the
// broker be the one that refuses.
func TestOfAThousandMessagesOnlyTheOneThatCannotBeSentIsRefused(t *testing.T) {
	t.Parallel()
	const attempts = 3
	large := message.NewMessage("bad", make([]byte, 70_000))
	for _, c := range []struct {
		name, topic, reason string
		msg                 *message.Message
		pub                 rabbitmq.Config
	}{
		{"an exchange that is not there", "missing", "no_exchange", message1("bad"), rabbitmq.Config{SkipTopology: true}},
		{"a message that is too large", "orders", "too_large", large, rabbitmq.Config{MaxMessageBytes: 65_536, SkipTopology: true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			l, broker := newLedger(t, postgres), testenv.RabbitMQ(t)
			ch := admin(t, broker)
			require.NoError(t, ch.ExchangeDeclare("orders", "fanout", true, false, false, false, nil))
			_, err := ch.QueueDeclare("orders", true, false, false, false, nil)
			require.NoError(t, err)
			require.NoError(t, ch.QueueBind("orders", "", "orders", false, nil))
			work := load{writers: 4, keys: contended, keyed: 30, free: 3}
			l.put(t.Context(), newSeed(t), 500, work)
			l.publishOne(c.topic, c.msg)
			l.put(t.Context(), newSeed(t), 500, work)

			c.pub.URL = broker
			cfg := forwarder.Config{MaxAttempts: attempts, RetryBase: 50 * time.Millisecond, RetryMax: 100 * time.Millisecond}
			f, stop := l.run(toRabbit(t, c.pub), cfg)
			l.settled()
			require.NoError(t, stop())
			ids := take(t, ch, "orders", l.count("ledger"))
			copies := map[string]int{}
			for _, id := range ids {
				if copies[id]++; copies[id] > 2 {
					t.Fatalf("%s came %d times", id, copies[id])
				}
			}
			l.requireReconciled(ids)
			require.Equal(t, map[string]bool{"bad:" + c.reason: true}, l.ids(`SELECT `+l.concat("id", "':'", "reason")+` FROM millrace_dead`))
			require.Equal(t, map[string]bool{fmt.Sprint(attempts): true}, l.ids(`SELECT attempts FROM millrace_dead`))
			require.EqualValues(t, attempts-1, f.Stats().Refused)
		})
	}
}

// concat is SQL for texts one after the other.
func (l *ledger) concat(parts ...string) string {
	if l.driver == "mysql" {
		return "concat(" + strings.Join(parts, ", ") + ")"
	}
	return strings.Join(parts, " || ")
}

func TestMessagesThatNoQueueTakesWaitForTheBinding(t *testing.T) {
	t.Parallel()
	l, broker := newLedger(t, postgres), testenv.RabbitMQ(t)
	ch := admin(t, broker)
	require.NoError(t, ch.ExchangeDeclare("orders", "fanout", true, false, false, false, nil))
	require.NoError(t, ch.ExchangeDeclare("other", "fanout", true, false, false, false, nil))
	for _, queue := range []string{"orders", "other"} {
		_, err := ch.QueueDeclare(queue, true, false, false, false, nil)
		require.NoError(t, err)
	}
	require.NoError(t, ch.QueueBind("other", "", "other", false, nil))
	l.put(t.Context(), newSeed(t), 200, load{writers: 4, keys: contended, keyed: 50, free: 1})
	l.publishOne("other", message1("bound"))
	f, stop := l.run(toRabbit(t, rabbitmq.Config{URL: broker, SkipTopology: true}),
		forwarder.Config{MaxAttempts: 1000, RetryBase: 50 * time.Millisecond, RetryMax: 100 * time.Millisecond})
	require.Equal(t, []string{"bound"}, take(t, ch, "other", 1), "the other exchange is served")
	testenv.Eventually(t, 2*time.Minute, "refusals, or the destination found at fault", func() bool {
		return f.Stats().Refused > 0 || f.Health(t.Context()) != nil
	})
	testenv.Eventually(t, 2*time.Minute, "the other message is settled", func() bool { return l.waiting() <= l.count("ledger") })
	require.Equal(t, l.count("ledger"), l.waiting(), "the rows are kept")
	require.NoError(t, ch.QueueBind("orders", "", "orders", false, nil))
	l.settled()
	require.NoError(t, stop())
	l.requireReconciled(take(t, ch, "orders", l.count("ledger")))
	l.requireNothingParked()
}

func TestAQueueThatIsFullIsWaitedForInOrder(t *testing.T) {
	t.Parallel()
	l, broker := newLedger(t, postgres), testenv.RabbitMQ(t)
	cfg := amqp.NewDurableQueueConfig("")
	cfg.Queue.Arguments = amqp091.Table{"x-max-length": 50, "x-overflow": "reject-publish"}
	f, stop := l.run(toRabbit(t, rabbitmq.Config{URL: broker, AMQP: cfg}), processConfig)
	l.put(t.Context(), newSeed(t), 600, load{writers: 4, keys: contended, keyed: 70, free: 1})
	testenv.Eventually(t, 2*time.Minute, "the forwarder says so", func() bool { return f.Health(t.Context()) != nil })
	require.NotZero(t, l.waiting())
	ids := take(t, admin(t, broker), "orders", l.count("ledger"))
	l.settled()
	require.NoError(t, stop())
	l.requireReconciled(ids)
	require.Zero(t, f.Stats().Refused, "a full queue is no attempt")
	l.requireNothingParked()
}

// TestWhatWasNotConfirmedStaysWhateverEndsTheBatch ends batches in the middle: by the time that a
// publish may take, and by the end of the forwarder.
func TestWhatWasNotConfirmedStaysWhateverEndsTheBatch(t *testing.T) {
	t.Parallel()
	for _, d := range databases {
		for _, end := range []string{"timeout", "stop"} {
			t.Run(d.name+" "+end, func(t *testing.T) {
				t.Parallel()
				l := newLedger(t, d)
				l.put(t.Context(), newSeed(t), 300, load{writers: 4, keys: contended, keyed: 50, free: 2})
				first := &stalling{record: record{filepath.Join(t.TempDir(), "got")}, stalled: make(chan struct{}, 1000)}
				// The broker's answers are not waited for long, and settling what it has said has all the time.
				cfg := forwarder.Config{BatchRows: 50, DrainTimeout: 100 * time.Millisecond, PublishTimeout: 200 * time.Millisecond}
				if end == "stop" {
					cfg.PublishTimeout = time.Minute
				}
				_, stop := l.run(first, cfg)
				for range 3 {
					<-first.stalled
				}
				if end == "timeout" {
					testenv.Eventually(t, 2*time.Minute, "the confirmed half of some batches is settled", func() bool { return l.waiting() < l.count("ledger")-50 })
				}
				_ = stop() // it may say that answers are missing
				left := l.ids(`SELECT id FROM millrace_outbox`)
				require.NotEmpty(t, left)
				for _, id := range first.ids(t) {
					require.False(t, left[id], "%s was confirmed, and waits", id)
				}
				l.exec(`DELETE FROM millrace_forwarders`) // its lease has ended
				_, stop = l.run(first.record, forwarder.Config{})
				l.settled()
				require.NoError(t, stop())
				require.Zero(t, l.requireReconciled(first.ids(t)), "duplicates")
			})
		}
	}
}

// stalling confirms half of each batch and is silent about the rest.
type stalling struct {
	record
	stalled chan struct{}
}

func (s *stalling) PublishBatch(ctx context.Context, topics []string, msgs []*message.Message) []error {
	half := (len(msgs) + 1) / 2
	errs := s.record.PublishBatch(ctx, topics[:half], msgs[:half])
	if half == len(msgs) {
		return errs
	}
	select {
	case s.stalled <- struct{}{}:
	default:
	}
	<-ctx.Done()
	for range msgs[half:] {
		errs = append(errs, ctx.Err())
	}
	return errs
}

// TestRowsThatCannotBeDecodedAreParkedOnceAndHoldNobodyUp spoils some rows, one of them the first of
// its key.
func TestRowsThatCannotBeDecodedAreParkedOnceAndHoldNobodyUp(t *testing.T) {
	t.Parallel()
	for _, d := range databases {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			l := newLedger(t, d)
			for i, metadata := range []string{`{"broken`, ``, `[1]`} {
				msg := message1(fmt.Sprintf("bad-%d", i))
				if i == 0 {
					msg = outbox.WithKey(msg, "k00")
				}
				l.publishOne("orders", msg)
				l.exec(fmt.Sprintf(`UPDATE millrace_outbox SET metadata = '%s' WHERE id = 'bad-%d'`, metadata, i))
			}
			l.put(t.Context(), newSeed(t), 200, load{writers: 4, keys: 3, keyed: 50, free: 1})
			pub := record{filepath.Join(t.TempDir(), "got")}
			_, stop := l.run(pub, forwarder.Config{})
			l.settled()
			require.NoError(t, stop())
			require.Zero(t, l.requireReconciled(pub.ids(t)), "duplicates")
			require.Equal(t, map[string]bool{"bad-0": true, "bad-1": true, "bad-2": true}, l.ids(`SELECT id FROM millrace_dead`))
			require.Equal(t, 3, l.count("millrace_dead"))
			require.Len(t, l.ids(`SELECT reason FROM millrace_dead`), 1)
		})
	}
}

var errAway = errors.New("the broker is away")

// away is a broker that can be switched off.
type away struct {
	record
	off func() bool
}

func (a away) PublishBatch(ctx context.Context, topics []string, msgs []*message.Message) []error {
	if !a.off() {
		return a.record.PublishBatch(ctx, topics, msgs)
	}
	errs := make([]error, len(msgs))
	for i := range errs {
		errs[i] = errAway
	}
	return errs
}
