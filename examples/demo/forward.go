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
	return fwd.Run(ctx)
}

// keepForwarding runs the forwarder in a process of its own until ctx ends. Each time due delivers, it kills that
// process as the kernel would, in the middle of whatever it does, and starts the next.
func keepForwarding(ctx context.Context, cfg config, p *progress, due <-chan struct{}, log io.Writer) error {
	cfg.Name = "forwarder"
	for {
		c, err := startChild("forwarder", cfg, log, func([]byte) {})
		if err != nil {
			return err
		}
		select {
		case <-due:
			c.kill()
			fmt.Fprintf(log, "forwarder: killed\n")
			p.update(func(s *snapshot) { s.Kills++; s.LastKill = time.Now() })
		case <-c.ended:
			return cmp.Or(c.err, errors.New("the forwarder ended by itself"))
		case <-ctx.Done():
			return c.stop()
		}
	}
}
