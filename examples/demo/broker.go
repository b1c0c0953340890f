package main

import (
	"context"
	"errors"
	"log/slog"

	"github.com/ThreeDotsLabs/watermill/message"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/millrace-go/millrace/broker/rabbitmq"
	"github.com/millrace-go/millrace/broker/redisstreams"
)

func newPublisher(cfg config, log *slog.Logger) (message.Publisher, error) {
	if cfg.onRabbitMQ() {
		return rabbitmq.NewPublisher(rabbitmq.Config{URL: cfg.Broker, Logger: log})
	}
	return redisstreams.NewPublisher(redisstreams.Config{URL: cfg.Broker, Logger: log})
}

// newSubscriber reads as a member of a consumer group. Messages of one customer come one after the other.
func newSubscriber(cfg config, group string, log *slog.Logger) (message.Subscriber, error) {
	if cfg.onRabbitMQ() {
		return rabbitmq.NewSubscriber(rabbitmq.Config{URL: cfg.Broker, ConsumerGroup: group, Logger: log})
	}
	return redisstreams.NewSubscriber(redisstreams.Config{URL: cfg.Broker, ConsumerGroup: group, Logger: log})
}

// reach asks a broker or Redis whether it is there.
func reach(ctx context.Context, address string) error {
	if (config{Broker: address}).onRabbitMQ() {
		conn, err := amqp.Dial(address)
		if err != nil {
			return err
		}
		return conn.Close()
	}
	rdb, err := openRedis(address)
	if err != nil {
		return err
	}
	return errors.Join(rdb.Ping(ctx).Err(), rdb.Close())
}

// removeTopic removes from the broker what the run made there. What the dedup store remembers expires by itself.
func removeTopic(ctx context.Context, cfg config) error {
	if !cfg.onRabbitMQ() {
		rdb, err := openRedis(cfg.Broker)
		if err != nil {
			return err
		}
		return errors.Join(rdb.Del(ctx, cfg.Topic).Err(), rdb.Close())
	}
	conn, err := amqp.Dial(cfg.Broker)
	if err != nil {
		return err
	}
	defer conn.Close()
	ch, err := conn.Channel()
	if err != nil {
		return err
	}
	for _, group := range []string{"billing", "audit"} {
		if _, err := ch.QueueDelete(cfg.Topic+"_"+group, false, false, false); err != nil {
			return err
		}
	}
	return ch.ExchangeDelete(cfg.Topic, false, false)
}
