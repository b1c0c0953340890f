// Command refund pays money back, automatically, through a payment service that is sometimes away, sometimes
// hears things twice, sometimes is not heard, and sometimes refuses.
//
//	go run ./refund
//	go run ./refund -refunds postgres://… -payments postgres://… -broker amqp://…
//
// Where to look: refunds.go stores a refund and publishes "execute refund" in one transaction, and says what
// follows when that failed; payments.go executes each of them once and confirms; operator.go is what a
// person does with those that failed for good. trouble.go is what goes wrong, count.go the books at the end.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9/logging"
)

func main() {
	cfg, err := parse(os.Args[1:], os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err == nil {
		logging.Disable() // go-redis would write into the picture; its errors reach us anyway
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		err = run(ctx, cfg, os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "refund:", err)
		os.Exit(1)
	}
}

type config struct {
	refunds, payments string // databases: postgres://…, or "" for SQLite
	broker            string // amqp://… or redis://…, or "" for an in-process Redis
	requests          int
	deadline          time.Duration // of a confirmation
	away              time.Duration // how long the payment service is down at the beginning
}

func parse(args []string, out io.Writer) (cfg config, err error) {
	fs := flag.NewFlagSet("refund", flag.ContinueOnError)
	fs.SetOutput(out)
	fs.StringVar(&cfg.refunds, "refunds", "", "database of the refund service, postgres://…; default SQLite")
	fs.StringVar(&cfg.payments, "payments", "", "database of the payment service, postgres://…; default SQLite")
	fs.StringVar(&cfg.broker, "broker", "", "amqp://… or redis://…; default a Redis in this process")
	fs.IntVar(&cfg.requests, "requests", 200, "refunds that are asked for")
	fs.DurationVar(&cfg.deadline, "deadline", 300*time.Millisecond, "after which an unconfirmed refund is sent again")
	fs.DurationVar(&cfg.away, "away", 2*time.Second, "how long the payment service is down at the beginning")
	if err := fs.Parse(args); err != nil {
		return cfg, err
	}
	if cfg.requests < 1 || cfg.deadline <= 0 || cfg.away < 0 {
		return cfg, errors.New("-requests and -deadline must be positive, -away not negative")
	}
	return cfg, nil
}

// run is the whole story, from the first request to the books.
func run(ctx context.Context, cfg config, out io.Writer) (err error) {
	s, err := open(ctx, cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()

	refunds, err := newRefunds(ctx, s)
	if err != nil {
		return err
	}
	payments, err := newPayments(ctx, s)
	if err != nil {
		return err
	}
	if err := payments.subscribe(ctx); err != nil { // so that the broker keeps what comes while it is down
		return err
	}
	refunds.start(ctx)
	fmt.Fprintf(out, "The payment service is down. %d refunds are asked for, each of them twice.\n", cfg.requests)
	for n := range cfg.requests {
		for range 2 {
			if err := refunds.request(ctx, refundOf(n)); err != nil {
				return err
			}
		}
	}
	if err := pause(ctx, cfg.away); err != nil {
		return err
	}
	fmt.Fprintln(out, "It comes up. One confirmation in three is lost, one request in five arrives twice, some accounts are closed.")
	payments.start(ctx)
	op := operator{refunds: refunds, payments: payments, out: out}
	// The operator looks again until nothing is left: what was sent again may fail again.
	for left := true; left; {
		if err := refunds.settled(ctx); err != nil {
			return err
		}
		if left, err = op.work(ctx); err != nil {
			return err
		}
	}
	books, err := count(ctx, refunds, payments)
	if err != nil {
		return err
	}
	books.print(out)
	return books.check()
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
