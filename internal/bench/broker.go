package main

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	wmamqp "github.com/ThreeDotsLabs/watermill-amqp/v3/pkg/amqp"
	wmredis "github.com/ThreeDotsLabs/watermill-redisstream/pkg/redisstream"
	"github.com/ThreeDotsLabs/watermill/message"
	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/redis/go-redis/v9"

	"github.com/millrace-go/millrace/broker/rabbitmq"
	"github.com/millrace-go/millrace/broker/redisstreams"
	"github.com/millrace-go/millrace/internal/testenv/servers"
)

// The kinds of destination. Ratios are formed within one kind only.
const (
	classic = "rabbitmq-classic"
	quorum  = "rabbitmq-quorum"
	streams = "redis"
)

// broker is a queue or stream that messages go to.
type broker struct {
	Kind  string
	URL   string
	Topic string
}

func (b broker) server() servers.Kind {
	if b.Kind == streams {
		return servers.Redis
	}
	return servers.RabbitMQ
}

func (b broker) queueArgs() amqp.Table {
	if b.Kind == quorum {
		return amqp.Table{"x-queue-type": "quorum"}
	}
	return nil
}

// create makes the queue, empty.
func (b broker) create() error {
	if b.Kind == streams {
		return nil
	}
	return b.channel(func(ch *amqp.Channel) error {
		_, err := ch.QueueDeclare(b.Topic, true, false, false, false, b.queueArgs())
		return err
	})
}

// remove deletes the queue and returns what was in it.
func (b broker) remove(ctx context.Context) (held int, err error) {
	if b.Kind == streams {
		client, err := b.redis()
		if err != nil {
			return 0, err
		}
		defer client.Close()
		n, err := client.XLen(ctx, b.Topic).Result()
		if err == nil {
			err = client.Del(ctx, b.Topic).Err()
		}
		return int(n), err
	}
	err = b.channel(func(ch *amqp.Channel) error {
		var err error
		held, err = ch.QueueDelete(b.Topic, false, false, false)
		return err
	})
	return held, err
}

func (b broker) channel(do func(*amqp.Channel) error) error {
	conn, err := amqp.Dial(b.URL)
	if err != nil {
		return err
	}
	defer conn.Close()
	ch, err := conn.Channel()
	if err != nil {
		return err
	}
	return do(ch)
}

func (b broker) redis() (*redis.Client, error) {
	opts, err := redis.ParseURL(b.URL)
	if err != nil {
		return nil, fmt.Errorf("redis: the address is not a URL")
	}
	opts.ContextTimeoutEnabled = true
	return redis.NewClient(opts), nil
}

// amqpConfig is the topology that all participants use: a durable queue of the topic's name.
func (b broker) amqpConfig() wmamqp.Config {
	c := wmamqp.NewDurableQueueConfig(b.URL)
	c.Queue.Arguments = b.queueArgs()
	return c
}

// ours is millrace's publisher, with its defaults.
func (b broker) ours(log *slog.Logger) (message.Publisher, error) {
	if b.Kind == streams {
		return redisstreams.NewPublisher(redisstreams.Config{URL: b.URL, Logger: log})
	}
	return rabbitmq.NewPublisher(rabbitmq.Config{AMQP: b.amqpConfig(), Quorum: b.Kind == quorum, Logger: log})
}

// stock is Watermill's publisher: confirmed, as no outbox makes sense without; tuned with channels that
// stay open.
func (b broker) stock(tuned bool) (message.Publisher, error) {
	if b.Kind == streams {
		client, err := b.redis()
		if err != nil {
			return nil, err
		}
		return wmredis.NewPublisher(wmredis.PublisherConfig{Client: client}, watermill.NopLogger{})
	}
	c := b.amqpConfig()
	c.Publish.ConfirmDelivery = true
	if tuned {
		c.Publish.ChannelPoolSize = 10
	}
	return wmamqp.NewPublisher(c, watermill.NopLogger{})
}

// consumeQueue receives without acknowledging, so that only the way is measured.
func (b broker) consumeQueue(each func(payload []byte, at time.Time)) (stop func(), err error) {
	conn, err := amqp.Dial(b.URL)
	if err != nil {
		return func() {}, err
	}
	ch, err := conn.Channel()
	if err != nil {
		return func() { _ = conn.Close() }, err
	}
	deliveries, err := ch.Consume(b.Topic, "", b.Kind != quorum, false, false, false, nil)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for d := range deliveries {
			each(d.Body, time.Now())
			if b.Kind == quorum {
				_ = d.Ack(false)
			}
		}
	}()
	return func() { _ = conn.Close(); <-done }, err
}
