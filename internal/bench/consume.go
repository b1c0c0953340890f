package main

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	wmamqp "github.com/ThreeDotsLabs/watermill-amqp/v3/pkg/amqp"
	wmredis "github.com/ThreeDotsLabs/watermill-redisstream/pkg/redisstream"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"

	"github.com/millrace-go/millrace/broker/rabbitmq"
	"github.com/millrace-go/millrace/broker/redisstreams"
	"github.com/millrace-go/millrace/dedup/redisdedup"
	"github.com/millrace-go/millrace/internal/testenv/servers"
	"github.com/millrace-go/millrace/middleware"
)

// consume measures handling each message once, remembered in Redis: a claim before the handler, which
// does nothing, and a mark after it.
type consume struct {
	broker    string
	roundTrip time.Duration
}

func (c consume) name() string {
	name := "consume/" + c.broker
	if c.roundTrip > 0 {
		name += "/" + c.roundTrip.String()
	}
	return name
}

const (
	serialName   = "watermill, claim and mark"
	prefetchName = "millrace, 100 at a time"
)

func (c consume) contender(name string) contender {
	task := map[string]string{serialName: "consume-stock", prefetchName: "consume-millrace"}[name]
	return contender{name, func(ctx context.Context, b *bench, round int) (Sample, error) {
		return c.measure(ctx, b, params{
			Task: task, N: b.scale.small, Cutoff: b.scale.patience(name == serialName),
			Options: map[string]int{concurrency.name: prefetched}, Profile: profileFile(b.profiles, c.name(), name, round),
		})
	}}
}

func (c consume) measure(ctx context.Context, b *bench, p params) (Sample, error) {
	at, end, err := b.place(ctx, c.broker, c.roundTrip)
	if err != nil {
		return Sample{}, err
	}
	defer func() { _, _ = end() }()
	a, err := b.fleet.server(ctx, servers.Redis)
	if err != nil {
		return Sample{}, err
	}
	if p.Dedup, err = b.fleet.slow(a.URL, c.roundTrip); err != nil {
		return Sample{}, err
	}
	direct := at
	direct.URL = b.fleet.started[at.server()].URL
	if fill, err := b.measureChild(ctx, params{Task: "raw-broker", Broker: direct, N: p.N}); err != nil {
		return fill, err
	}
	p.Broker, p.Way = at, b.fleet.name("consumer")
	return b.measureChild(ctx, p)
}

// prefetched is how many messages are in hand.
const prefetched = 100

// consumed runs a router until the messages are handled.
func consumed(ctx context.Context, p params, sub message.Subscriber, chain []message.HandlerMiddleware, begin func()) (Sample, error) {
	var handled atomic.Int64
	return consumedBy(ctx, p, sub, chain, func(*message.Message) error {
		handled.Add(1)
		return nil
	}, func() int { return int(handled.Load()) }, begin)
}

// consumedBy runs a router until so many as it is to move were moved.
func consumedBy(ctx context.Context, p params, sub message.Subscriber, chain []message.HandlerMiddleware, handler message.NoPublishHandlerFunc,
	moved func() int, begin func()) (Sample, error) {
	router, err := message.NewRouter(message.RouterConfig{CloseTimeout: 5 * time.Second}, watermill.NopLogger{})
	if err != nil {
		return Sample{}, err
	}
	router.AddConsumerHandler("bench", p.Broker.Topic, sub, handler).AddMiddleware(chain...)
	run, stop := context.WithCancel(ctx)
	defer stop()
	begin()
	ended := make(chan error, 1)
	go func() { ended <- router.Run(run) }()
	s, err := drained(ctx, p, moved)
	stop()
	select {
	case failed := <-ended:
		err = errors.Join(err, failed)
	case <-time.After(10 * time.Second):
	}
	return s, err
}

// subscriber is millrace's.
func (b broker) subscriber(concurrency int) (message.Subscriber, error) {
	if b.Kind == streams {
		return redisstreams.NewSubscriber(redisstreams.Config{
			URL: b.URL, ConsumerGroup: "bench", Consumer: "one", Concurrency: concurrency, Logger: warnings(),
		})
	}
	return rabbitmq.NewSubscriber(rabbitmq.Config{AMQP: b.amqpConfig(), Quorum: b.Kind == quorum, Concurrency: concurrency, Logger: warnings()})
}

func consumeOurs(ctx context.Context, p params, begin func()) (Sample, error) {
	opts, err := redis.ParseURL(p.Dedup)
	if err != nil {
		return Sample{}, errors.New("redis: the address is not a URL")
	}
	opts.ContextTimeoutEnabled = true
	opts.PoolSize = max(10, p.Options[concurrency.name])
	client := redis.NewClient(opts)
	defer client.Close()
	sub, err := p.Broker.subscriber(p.Options[concurrency.name])
	if err != nil {
		return Sample{}, err
	}
	chain, err := middleware.Recommended(middleware.Config{
		Dedup: redisdedup.New(client, redisdedup.Config{Namespace: p.Way}), Logger: warnings(),
	})
	if err != nil {
		return Sample{}, err
	}
	return consumed(ctx, p, sub, chain, begin)
}

func consumeStock(ctx context.Context, p params, begin func()) (Sample, error) {
	opts, err := redis.ParseURL(p.Dedup)
	if err != nil {
		return Sample{}, errors.New("redis: the address is not a URL")
	}
	client := redis.NewClient(opts)
	defer client.Close()
	var sub message.Subscriber
	if p.Broker.Kind == streams {
		reader, err := p.Broker.redis()
		if err != nil {
			return Sample{}, err
		}
		sub, err = wmredis.NewSubscriber(wmredis.SubscriberConfig{Client: reader, ConsumerGroup: "bench", Consumer: "one", OldestId: "0"}, watermill.NopLogger{})
		if err != nil {
			return Sample{}, err
		}
	} else {
		c := p.Broker.amqpConfig()
		c.Consume.Qos.PrefetchCount = prefetched
		if sub, err = wmamqp.NewSubscriber(c, watermill.NopLogger{}); err != nil {
			return Sample{}, err
		}
	}
	// What one writes by hand: SET NX before, SET after.
	once := func(next message.HandlerFunc) message.HandlerFunc {
		return func(msg *message.Message) ([]*message.Message, error) {
			key := p.Way + ":" + msg.UUID
			claimed, err := client.SetNX(msg.Context(), key, "claimed", 30*time.Second).Result()
			if err != nil {
				return nil, err
			}
			if !claimed {
				return nil, fmt.Errorf("claimed by somebody else")
			}
			out, err := next(msg)
			if err == nil {
				err = client.Set(msg.Context(), key, "done", time.Hour).Err()
			}
			return out, err
		}
	}
	return consumed(ctx, p, sub, []message.HandlerMiddleware{once}, begin)
}

func consumeCases(sc scale) (all []benchCase) {
	for _, c := range []consume{{classic, 2 * time.Millisecond}, {streams, 2 * time.Millisecond}, {classic, 0}, {streams, 0}} {
		if !sc.extras && c.roundTrip == 0 {
			continue
		}
		all = append(all, benchCase{
			name: c.name(), title: fmt.Sprintf("Each message handled once, from %s, remembered in Redis, round trip %v", c.broker, c.roundTrip),
			explain: consumeExplained, columns: drainColumns, compare: &comparison{head: "millrace is", base: prefetchName, inverse: true},
			contenders: []contender{c.contender(prefetchName), c.contender(serialName)},
		})
	}
	return all
}
