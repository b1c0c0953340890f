package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/forwarder"
	"github.com/millrace-go/millrace/outbox"
)

// runForwarder is the process that moves committed messages from the outbox to the broker.
func runForwarder(ctx context.Context, cfg config, log *slog.Logger) error {
	db, err := openDatabase(cfg, "shop")
	if err != nil {
		return err
	}
	defer db.Close()
	pub, err := newPublisher(cfg, log)
	if err != nil {
		return err
	}
	defer pub.Close()

	box, err := outbox.New(millrace.SQL(db), outbox.Config{Logger: log})
	if err != nil {
		return err
	}
	fwd, err := forwarder.New(box, pub, forwarder.Config{
		Lease:        cfg.Lease,             // a dead forwarder's lanes wait that long; a service is well served by the default, 8 s
		PollInterval: 50 * time.Millisecond, // the shop is another process: its commits wake nobody here
		Logger:       log,
	})
	if err != nil {
		return err
	}
	go tellWhenBusy(ctx, fwd)
	return fwd.Run(ctx)
}

// tellWhenBusy writes a line whenever messages are on their way, for the one who wants to kill us just then.
func tellWhenBusy(ctx context.Context, fwd *forwarder.Forwarder) {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if fwd.Stats().Pending > 0 { // with the broker, and not yet settled
				fmt.Println("busy")
			}
		case <-ctx.Done():
			return
		}
	}
}

// keepForwarding runs the forwarder in a process of its own until ctx ends. From time to time it kills that process as
// the kernel would, while messages are on their way, and starts the next.
func keepForwarding(ctx context.Context, cfg config, p *progress, log io.Writer) error {
	cfg.Name = "forwarder"
	for {
		busy := make(chan struct{})
		c, err := startChild("forwarder", cfg, log, func([]byte) {
			select {
			case busy <- struct{}{}:
			default:
			}
		})
		if err != nil {
			return err
		}
		for killed := false; !killed; {
			select {
			case <-busy:
				if killed = p.killIsDue(cfg); killed {
					c.kill()
					fmt.Fprintln(log, "forwarder: killed")
					p.update(func(s *snapshot) { s.Kills++; s.LastKill = time.Now() })
				}
			case <-c.ended:
				return cmp.Or(c.err, errors.New("the forwarder ended by itself"))
			case <-ctx.Done():
				return c.stop()
			}
		}
	}
}

// killIsDue spreads the kills over the orders.
func (p *progress) killIsDue(cfg config) bool {
	s := p.snapshot()
	return s.Kills < cfg.Kills && s.Committed >= (s.Kills+1)*cfg.Orders/(cfg.Kills+1)
}
