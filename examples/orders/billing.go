package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/broker/rabbitmq"
	"github.com/millrace-go/millrace/dedup/redisdedup"
	"github.com/millrace-go/millrace/middleware"
)

// runBilling calls bill once for each order until ctx ends, in as many processes as run it.
func runBilling(ctx context.Context, amqpURL, redisURL string, log *slog.Logger, bill func(context.Context, OrderPlaced) error) error {
	opts, err := redis.ParseURL(redisURL)
	if err != nil {
		return err
	}
	opts.ContextTimeoutEnabled = true
	rdb := redis.NewClient(opts)
	defer rdb.Close()

	sub, err := rabbitmq.NewSubscriber(rabbitmq.Config{URL: amqpURL, ConsumerGroup: "billing", Logger: log})
	if err != nil {
		return err
	}
	defer sub.Close()
	router, err := message.NewRouter(message.RouterConfig{}, watermill.NewSlogLogger(log))
	if err != nil {
		return err
	}
	chain, err := middleware.Recommended(middleware.Config{Dedup: redisdedup.New(rdb, redisdedup.Config{Namespace: "billing"})})
	if err != nil {
		return err
	}
	router.AddMiddleware(chain...)
	router.AddConsumerHandler("bill-order", "orders.placed", sub, func(msg *message.Message) error {
		var order OrderPlaced
		if err := json.Unmarshal(msg.Payload, &order); err != nil {
			return err
		}
		return bill(msg.Context(), order)
	})
	return millrace.RunRouter(ctx, router)
}

func sendBill(_ context.Context, order OrderPlaced) error {
	fmt.Printf("order %s: please pay %d.%02d\n", order.ID, order.Amount/100, order.Amount%100)
	return nil
}
