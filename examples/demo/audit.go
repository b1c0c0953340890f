package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"

	"github.com/ThreeDotsLabs/watermill/message"
)

// audit watches the broker: a consumer group of its own that reads every message in the order in which the broker
// got them. It is the witness of the forwarder's work, and it makes some of the trouble that billing has to stand.
type audit struct {
	topic    string
	progress *progress
	pub      message.Publisher
	msgs     <-chan *message.Message
	close    []func() error

	seen map[string]bool // by message id
	last map[string]int  // the newest order number of each customer
}

// openAudit subscribes. Afterwards the broker keeps for the audit what it gets.
func openAudit(ctx context.Context, cfg config, p *progress, logTo io.Writer) (*audit, error) {
	log := slog.New(slog.NewTextHandler(logTo, nil)).With("process", "audit")
	a := &audit{
		topic: cfg.Topic, progress: p,
		seen: map[string]bool{}, last: map[string]int{},
	}
	pub, err := newPublisher(cfg, log)
	if err != nil {
		return nil, err
	}
	sub, err := newSubscriber(cfg, "audit", log)
	if err != nil {
		return nil, errors.Join(err, pub.Close())
	}
	a.pub, a.close = pub, []func() error{sub.Close, pub.Close}
	if a.msgs, err = sub.Subscribe(ctx, cfg.Topic); err != nil {
		return nil, errors.Join(err, sub.Close(), pub.Close())
	}
	return a, nil
}

// run reads the messages, one after the other, until ctx ends.
func (a *audit) run(ctx context.Context) error {
	defer func() {
		for _, c := range a.close {
			_ = c()
		}
	}()
	for msg := range a.msgs {
		if err := a.look(msg); err != nil && ctx.Err() == nil {
			msg.Nack()
			return err
		}
		msg.Ack()
	}
	if ctx.Err() == nil {
		return errors.New("the audit's subscription ended")
	}
	return nil
}

func (a *audit) look(msg *message.Message) error {
	if a.seen[msg.UUID] {
		a.progress.update(func(s *snapshot) { s.Copies++ })
		return nil
	}
	a.seen[msg.UUID] = true

	var order OrderPlaced
	if err := json.Unmarshal(msg.Payload, &order); err != nil {
		return fmt.Errorf("a message that is no order reached the broker: %w", err)
	}
	early := order.Number != a.last[order.Customer]+1
	a.last[order.Customer] = max(order.Number, a.last[order.Customer])
	a.progress.update(func(s *snapshot) {
		s.Forwarded++
		if early {
			s.Disorder++
		}
	})
	if rand.IntN(20) == 0 {
		return a.sendAgain(msg)
	}
	return nil
}

// sendAgain sends a copy with the same id straight to the broker, as a flaky network or a careless script does.
func (a *audit) sendAgain(msg *message.Message) error {
	again := msg.Copy()
	again.SetContext(context.WithoutCancel(msg.Context()))
	if err := a.pub.Publish(a.topic, again); err != nil {
		return fmt.Errorf("sending a message again: %w", err)
	}
	a.progress.update(func(s *snapshot) { s.Injected++ })
	return nil
}
