// Command demo is an order service that loses nothing: customers place orders and some change their mind, the forwarder
// is killed again and again, messages arrive twice, and at the end each committed order has one bill.
//
//	go run ./demo
//
// Where to look: shop.go places an order and publishes in one transaction, forward.go moves messages to the broker,
// billing.go handles each of them once. The rest is the theatre around it: processes, trouble, view, count.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/redis/go-redis/v9/logging"
)

var errUnclean = errors.New("the books do not balance")

func main() {
	err := dispatch(os.Args[1:])
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
	case errors.Is(err, context.Canceled):
		fmt.Fprintln(os.Stderr, "\ndemo: stopped; nothing was counted")
		os.Exit(130)
	default:
		fmt.Fprintln(os.Stderr, "demo:", strings.Join(strings.Fields(err.Error()), " ")) // one line
		os.Exit(1)
	}
}

func dispatch(args []string) error {
	if len(args) == 1 {
		switch args[0] {
		case "forwarder":
			return runChild(runForwarder)
		case "billing":
			return runChild(runBilling)
		}
	}
	cfg, real, err := parse(args, os.Stderr)
	if err != nil {
		return err
	}
	logging.Disable() // go-redis would write into the picture; its errors reach us anyway
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the demo at once
	if real {
		return runReal(ctx, cfg)
	}
	return runOnce(ctx, cfg)
}

// runReal runs on the servers that the test harness started, with each of the brokers.
func runReal(ctx context.Context, cfg config) error {
	cfg.DB, cfg.Dedup = os.Getenv("MILLRACE_TEST_POSTGRES_URL"), os.Getenv("MILLRACE_TEST_REDIS_URL")
	for _, broker := range []string{"MILLRACE_TEST_RABBITMQ_URL", "MILLRACE_TEST_REDIS_URL"} {
		cfg.Broker = os.Getenv(broker)
		if cfg.DB == "" || cfg.Dedup == "" || cfg.Broker == "" {
			return errors.New("-real wants MILLRACE_TEST_POSTGRES_URL, MILLRACE_TEST_RABBITMQ_URL and MILLRACE_TEST_REDIS_URL; make demo-real sets them")
		}
		if err := runOnce(ctx, cfg); err != nil {
			return err
		}
	}
	return nil
}

// runOnce is one demo from the empty stage to the verdict.
func runOnce(ctx context.Context, cfg config) (err error) {
	cfg.Run = "millrace_demo_" + strings.ToLower(watermill.NewShortUUID()[:8])
	cfg.Topic = cfg.Run + ".orders_placed"
	folder, err := os.MkdirTemp("", "millrace-demo-")
	if err != nil {
		return err
	}
	var s stage
	keep := false
	defer func() {
		if undone := s.tearDown(ctx); undone != nil {
			err = errors.Join(err, fmt.Errorf("cleaning up: %w", undone))
		}
		if !keep {
			_ = os.RemoveAll(folder)
		}
	}()
	if err := s.build(ctx, &cfg, folder); err != nil {
		return err
	}
	r, err := play(ctx, cfg, &s)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err == nil && !r.clean() {
		err = errUnclean
	}
	if err != nil {
		keep = true
		return fmt.Errorf("%w (look into %s)", err, folder)
	}
	return nil
}

// play runs the services, shows how they do, and counts.
func play(ctx context.Context, cfg config, s *stage) (result, error) {
	log, err := os.Create(filepath.Join(s.folder, "demo.log"))
	if err != nil {
		return result{}, err
	}
	defer log.Close()

	var p progress
	screen := newView(os.Stdout, cfg)
	closeScreen := screen.open(&p)
	err = perform(ctx, cfg, s, &p, log)
	closeScreen()
	if err != nil || ctx.Err() != nil {
		return result{}, err
	}
	r, err := reconcile(ctx, s.shop, s.billing, p.snapshot())
	if err != nil {
		return r, err
	}
	r.print(os.Stdout, screen.paint)
	return r, nil
}
