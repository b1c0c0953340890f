package rabbitmq_test

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	amqp091 "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/broker/rabbitmq"
	"github.com/millrace-go/millrace/internal/died"
	"github.com/millrace-go/millrace/internal/fault/proxy"
	"github.com/millrace-go/millrace/internal/testenv"
)

// through is the URL of a broker by way of a proxy.
func through(t *testing.T, brokerURL string) (string, *proxy.Proxy) {
	t.Helper()
	u, err := url.Parse(brokerURL)
	require.NoError(t, err)
	p := proxy.New(t, u.Host)
	u.Host = p.Addr
	return u.String(), p
}

// insist publishes until every message is confirmed, in batches, as a forwarder would, and fails if one
// is blamed.
func insist(t *testing.T, p *rabbitmq.Publisher, topic string, msgs []*message.Message) {
	deadline := time.Now().Add(3 * time.Minute)
	for len(msgs) > 0 && !t.Failed() {
		if time.Now().After(deadline) {
			t.Errorf("%d messages are not published", len(msgs))
			return
		}
		var rest []*message.Message
		for batch := range slices.Chunk(msgs, 100) {
			ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
			for i, err := range p.PublishBatch(ctx, slices.Repeat([]string{topic}, len(batch)), batch) {
				if r := reason(err); r != "" {
					t.Errorf("a message was blamed for an outage: %v", err)
				}
				if err != nil {
					rest = append(rest, batch[i])
				}
			}
			cancel()
		}
		msgs = rest
	}
}

// received counts deliveries by message id until stopped.
type received struct {
	mu    sync.Mutex
	count map[string]int
}

// receive acknowledges what comes, a little later, as many at a time as the subscription hands out.
func receive(out <-chan *message.Message) *received {
	r := &received{count: map[string]int{}}
	go func() {
		for m := range out {
			go func() {
				r.mu.Lock()
				r.count[m.UUID]++
				r.mu.Unlock()
				m.Ack()
			}()
		}
	}()
	return r
}

func (r *received) of(id string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.count[id]
}

func (r *received) distinct() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.count)
}

func TestConnectionsThatAreCutUnderLoadLoseNothing(t *testing.T) {
	t.Parallel()
	rounds := 8
	if testenv.Full() {
		rounds = 40
	}
	direct := testenv.RabbitMQ(t)
	sending, sendProxy := through(t, direct)
	receiving, receiveProxy := through(t, direct)
	sub := newSubscriber(t, rabbitmq.Config{URL: receiving, ConsumerGroup: "g", CloseTimeout: time.Second})
	out, err := sub.Subscribe(t.Context(), "orders")
	require.NoError(t, err)
	got := receive(out)
	p := newPublisher(t, rabbitmq.Config{URL: sending, Channels: 4, Timeout: 3 * time.Second})

	var wg sync.WaitGroup
	var all []*message.Message
	stop := make(chan struct{})
	for range 6 {
		var mine [][]*message.Message
		for range 15 {
			mine = append(mine, messages(100))
			all = append(all, mine[len(mine)-1]...)
		}
		wg.Go(func() {
			for _, msgs := range mine {
				insist(t, p, "orders", msgs)
			}
		})
	}
	go func() { wg.Wait(); close(stop) }()
	cuts := 0
	for tick := time.NewTicker(150 * time.Millisecond); cuts < rounds; {
		select {
		case <-stop:
			cuts = rounds
		case <-tick.C:
			cuts++
			sendProxy.Cut()
			if cuts%3 == 0 {
				receiveProxy.Cut()
			}
		}
	}
	wg.Wait()
	testenv.Eventually(t, 3*time.Minute, "every confirmed message", func() bool { return got.distinct() == len(all) })
}

func TestKillsOfTheBrokerUnderLoadLoseNothing(t *testing.T) {
	t.Parallel()
	// Not with quorum queues: RabbitMQ 3.10 on a single node does not always bring them back after a
	// kill, and then answers neither publish nor consume until it is restarted.
	config := rabbitmq.Config{ConsumerGroup: "g"}
	underLoad(t, config, 2, func(server *testenv.Server) { server.Kill(); server.Start() })
}

func TestARestartOfTheBrokerUnderLoadLosesNothingOfAQuorumQueue(t *testing.T) {
	t.Parallel()
	underLoad(t, rabbitmq.Config{ConsumerGroup: "g", Quorum: true}, 1, (*testenv.Server).Restart)
}

// underLoad ends the broker several times while messages are published and received, and expects all of
// them in the end.
func underLoad(t *testing.T, config rabbitmq.Config, times int, end func(*testenv.Server)) {
	if testenv.Full() {
		times = 10
	}
	const batches = 20 // for each time
	server := testenv.OwnRabbitMQ(t)
	config.URL = server.URL
	out, err := newSubscriber(t, config).Subscribe(t.Context(), "orders")
	require.NoError(t, err)
	got := receive(out)
	p := newPublisher(t, config)
	var sent []*message.Message
	for range times {
		var confirmed atomic.Int64
		var wg sync.WaitGroup
		wg.Go(func() {
			for range batches {
				msgs := messages(100)
				sent = append(sent, msgs...)
				insist(t, p, "orders", msgs)
				confirmed.Add(1)
			}
		})
		testenv.Eventually(t, 3*time.Minute, "load", func() bool { return confirmed.Load() >= batches/4 })
		end(server)
		wg.Wait()
	}
	testenv.Eventually(t, 3*time.Minute, "every confirmed message", func() bool { return got.distinct() == len(sent) })
}

func TestABrokerThatFallsSilentIsGivenUpInTimeAndComesBack(t *testing.T) {
	t.Parallel()
	url, hole := through(t, testenv.RabbitMQ(t))
	config := queueConfig(url)
	config.Timeout = time.Second
	p := newPublisher(t, config)
	confirmed := func(p *rabbitmq.Publisher) {
		t.Helper()
		testenv.Eventually(t, time.Minute, "a confirm", func() bool { return p.Publish("orders", messages(1)...) == nil })
	}
	confirmed(p)
	config.Timeout = 10 * time.Minute
	patient := newPublisher(t, config)
	confirmed(patient)

	hole.Blackhole(true)
	for range 4 {
		big := messages(50)
		for _, m := range big {
			m.Payload = make([]byte, 1<<20) // more than the socket's buffers take
		}
		start := time.Now()
		errs := p.PublishBatch(context.WithoutCancel(t.Context()), slices.Repeat([]string{"orders"}, len(big)), big)
		require.Less(t, time.Since(start), 30*time.Second)
		for _, err := range errs {
			require.Error(t, err)
			require.Empty(t, reason(err))
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	for _, err := range patient.PublishBatch(ctx, []string{"orders"}, messages(1)) {
		require.Error(t, err)
	}
	require.Less(t, time.Since(start), time.Minute, "the context ended long before Timeout")

	hole.Blackhole(false)
	confirmed(p)

	hole.Blackhole(true)
	start = time.Now()
	require.NoError(t, p.Close())
	require.Less(t, time.Since(start), 30*time.Second)
	hole.Cut() // the patient one would say goodbye for as long as it has
}

func TestASubscriptionOutlivesASilentBrokerAndLostQueues(t *testing.T) {
	t.Parallel()
	direct := testenv.RabbitMQ(t)
	url, hole := through(t, direct)
	p := newPublisher(t, rabbitmq.Config{URL: direct})
	// The heartbeat is what finds out about a silent broker.
	sub := newSubscriber(t, rabbitmq.Config{URL: url + "?heartbeat=2", ConsumerGroup: "g", Timeout: 5 * time.Second})
	out, err := sub.Subscribe(t.Context(), "orders")
	require.NoError(t, err)
	got := receive(out)

	hole.Blackhole(true)
	ch := raw(t, direct)
	testenv.Eventually(t, 2*time.Minute, "the consumer to be given up", func() bool {
		q, err := ch.QueueDeclarePassive("orders_g", true, false, false, false, nil)
		return err == nil && q.Consumers == 0
	})
	hole.Blackhole(false)
	require.NoError(t, p.Publish("orders", messages(5)...))
	testenv.Eventually(t, 2*time.Minute, "messages", func() bool { return got.distinct() == 5 })

	// A queue that is deleted cancels the consumer: no phantom message, and a new queue.
	_, err = ch.QueueDelete("orders_g", false, false, false)
	require.NoError(t, err)
	testenv.Eventually(t, 2*time.Minute, "the queue again", func() bool {
		return p.Publish("orders", messages(1)...) == nil
	})
	testenv.Eventually(t, 2*time.Minute, "its message", func() bool { return got.distinct() >= 6 })
	require.Zero(t, got.of(""))
	require.NoError(t, sub.Err())
}

func TestABrokerThatIsDownAtTheStartIsWaitedFor(t *testing.T) {
	t.Parallel()
	url, gate := through(t, testenv.RabbitMQ(t))
	gate.Refuse(true)
	config := queueConfig(url)
	sub := newSubscriber(t, config)
	out, err := sub.Subscribe(t.Context(), "orders")
	require.NoError(t, err)
	require.Error(t, sub.SubscribeInitialize("orders"))
	p := newPublisher(t, config)
	err = p.Publish("orders", messages(1)...)
	require.Error(t, err)
	require.False(t, setup(err))
	require.False(t, setup(p.Check(t.Context())))

	gate.Refuse(false)
	testenv.Eventually(t, 2*time.Minute, "a confirm", func() bool { return p.Publish("orders", messages(1)...) == nil })
	next(t, out).Ack()
	require.NoError(t, sub.Err())
}

func TestASubscriptionThatTheBrokerTurnsAwayDiesAndSaysWhy(t *testing.T) {
	t.Parallel()
	server := testenv.OwnRabbitMQ(t)
	admin, err := url.Parse(server.Admin)
	require.NoError(t, err)
	user := admin.User.Username()
	call := func(method, path, body string) {
		req, err := http.NewRequestWithContext(t.Context(), method, server.Admin+path, strings.NewReader(body))
		require.NoError(t, err)
		client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		resp, err := client.Do(req)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		require.Less(t, resp.StatusCode, 300)
	}
	call("PUT", "/api/vhosts/passing", "")
	call("PUT", "/api/permissions/passing/"+user, `{"configure":".*","write":".*","read":".*"}`)
	u, err := url.Parse(server.URL)
	require.NoError(t, err)
	u.Path = "/passing"

	sub := newSubscriber(t, rabbitmq.Config{URL: u.String(), ConsumerGroup: "g"})
	var told error
	out, err := sub.Subscribe(died.With(t.Context(), func(err error) { told = err }), "orders")
	require.NoError(t, err)
	call("DELETE", "/api/vhosts/passing", "")
	select {
	case _, open := <-out:
		require.False(t, open)
	case <-time.After(3 * time.Minute):
		t.Fatal("the subscription goes on")
	}
	require.Equal(t, sub.Err(), told, "a router learns it too")
	require.ErrorContains(t, sub.Err(), "create the vhost")
	require.True(t, setup(sub.Err()))

	_, err = newSubscriber(t, rabbitmq.Config{URL: u.String(), ConsumerGroup: "g"}).Subscribe(t.Context(), "orders")
	require.True(t, setup(err), "%v", err)
	var ended *amqp091.Error
	require.True(t, errors.As(err, &ended))
}
