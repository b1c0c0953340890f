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
		at, end, err := b.place(ctx, c.broker, c.roundTrip)
		if err != nil {
			return Sample{}, err
		}
		defer func() { _, _ = end() }()
		a, err := b.fleet.server(ctx, servers.Redis)
		if err != nil {
			return Sample{}, err
		}
		dedup, err := b.fleet.slow(a.URL, c.roundTrip)
		if err != nil {
			return Sample{}, err
		}
		direct := at
		direct.URL = b.fleet.started[at.server()].URL
		fill, err := b.measureChild(ctx, params{Task: "raw-broker", Broker: direct, N: b.scale.small})
		if err != nil {
			return fill, err
		}
		return b.measureChild(ctx, params{
			Task: task, Broker: at, Dedup: dedup, N: b.scale.small, Cutoff: b.scale.patience(name == serialName),
			Way: b.fleet.name("consumer"), Profile: profileFile(b.profiles, c.name(), name, round),
		})
	}}
}

const concurrency = 100

// consumed runs a router until the messages are handled.
func consumed(ctx context.Context, p params, sub message.Subscriber, chain []message.HandlerMiddleware, begin func()) (Sample, error) {
	router, err := message.NewRouter(message.RouterConfig{CloseTimeout: 5 * time.Second}, watermill.NopLogger{})
	if err != nil {
		return Sample{}, err
	}
	var handled atomic.Int64
	h := router.AddConsumerHandler("bench", p.Broker.Topic, sub, func(*message.Message) error {
		handled.Add(1)
		return nil
	})
	h.AddMiddleware(chain...)
	run, stop := context.WithCancel(ctx)
	defer stop()
	begin()
	ended := make(chan error, 1)
	go func() { ended <- router.Run(run) }()
	s, err := drained(ctx, p, func() int { return int(handled.Load()) })
	stop()
	select {
	case failed := <-ended:
		err = errors.Join(err, failed)
	case <-time.After(10 * time.Second):
	}
	return s, err
}

func consumeOurs(ctx context.Context, p params, begin func()) (Sample, error) {
	opts, err := redis.ParseURL(p.Dedup)
	if err != nil {
		return Sample{}, errors.New("redis: the address is not a URL")
	}
	opts.ContextTimeoutEnabled = true
	opts.PoolSize = concurrency
	client := redis.NewClient(opts)
	defer client.Close()
	var sub message.Subscriber
	if p.Broker.Kind == streams {
		sub, err = redisstreams.NewSubscriber(redisstreams.Config{
			URL: p.Broker.URL, ConsumerGroup: "bench", Consumer: "one", Concurrency: concurrency, Logger: warnings(),
		})
	} else {
		c := p.Broker.amqpConfig()
		sub, err = rabbitmq.NewSubscriber(rabbitmq.Config{AMQP: c, Quorum: p.Broker.Kind == quorum, Concurrency: concurrency, Logger: warnings()})
	}
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
		c.Consume.Qos.PrefetchCount = concurrency
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
			explain: consumeExplained, columns: drainColumns,
			contenders: []contender{c.contender(prefetchName), c.contender(serialName)},
		})
	}
	return all
}
