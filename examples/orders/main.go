// Command orders is a service to copy from: a shop on PostgreSQL that publishes through RabbitMQ, and the billing
// service that handles what it publishes.
//
//	export DATABASE_URL=postgres://… AMQP_URL=amqp://… REDIS_URL=redis://…
//	go run ./orders shop        # takes orders at http://localhost:8080/orders
//	go run ./orders billing     # in another terminal, as often as you like
//	curl -d amount=4200 http://localhost:8080/orders
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, append(os.Args[1:], "")[0], slog.Default()); err != nil {
		fmt.Fprintln(os.Stderr, "orders:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, service string, log *slog.Logger) error {
	switch service {
	case "shop":
		listener, err := net.Listen("tcp", "localhost:8080")
		if err != nil {
			return err
		}
		return runShop(ctx, os.Getenv("DATABASE_URL"), os.Getenv("AMQP_URL"), listener, log)
	case "billing":
		return runBilling(ctx, os.Getenv("AMQP_URL"), os.Getenv("REDIS_URL"), log, sendBill)
	default:
		return errors.New("usage: orders shop|billing")
	}
}
