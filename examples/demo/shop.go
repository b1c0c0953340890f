package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"golang.org/x/sync/errgroup"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/outbox"
)

const (
	customers = 40
	tills     = 8 // transactions at a time
)

// OrderPlaced says that a customer placed an order.
type OrderPlaced struct {
	ID       string `json:"id"`
	Customer string `json:"customer"`
	Number   int    `json:"number"` // of this customer's orders, from 1, without gaps
	Amount   int    `json:"amount"` // cents
}

func customer(i int) string { return fmt.Sprintf("customer-%02d", i+1) }

// errChangedMind rolls an order back.
var errChangedMind = errors.New("the customer changed their mind")

// shop takes orders.
type shop struct {
	db    *millrace.SQLDB
	box   *outbox.Box
	topic string
}

// place stores an order and publishes OrderPlaced in one transaction: both happen, or neither.
func (s *shop) place(ctx context.Context, order OrderPlaced, changedMind bool) error {
	return millrace.InTx(ctx, s.db, func(ctx context.Context, tx *millrace.Tx) error {
		// This locks the customer's row, so that the orders of one customer commit in the order of their numbers.
		err := tx.QueryRowContext(ctx, `UPDATE customers SET orders = orders + 1 WHERE id = $1 RETURNING orders`, order.Customer).
			Scan(&order.Number)
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `INSERT INTO orders (id, customer, number, amount) VALUES ($1, $2, $3, $4)`,
			order.ID, order.Customer, order.Number, order.Amount)
		if err != nil {
			return err
		}
		payload, err := json.Marshal(order)
		if err != nil {
			return err
		}
		msg := message.NewMessage(watermill.NewUUID(), payload)
		outbox.WithKey(msg, order.Customer) // a customer's messages keep their order
		if err := s.box.Publish(ctx, s.topic, msg); err != nil {
			return err
		}
		if changedMind {
			return errChangedMind // the order is undone, and nobody ever hears of it
		}
		return nil
	})
}

// open serves customers until as many orders are placed as the configuration says.
func (s *shop) open(ctx context.Context, cfg config, p *progress) error {
	line := make(chan struct{})
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(line)
		return arrivals(ctx, cfg.Orders, cfg.Rate, line)
	})
	for range tills {
		g.Go(func() error {
			for range line {
				if err := s.serve(ctx, p); err != nil {
					return fmt.Errorf("an order could not be placed: %w", err)
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// serve takes one order from a customer, who may change their mind before.
func (s *shop) serve(ctx context.Context, p *progress) error {
	for {
		order := OrderPlaced{
			ID:       watermill.NewUUID(),
			Customer: customer(rand.IntN(customers)),
			Amount:   100 + rand.IntN(9900),
		}
		switch err := s.place(ctx, order, rand.IntN(10) == 0); {
		case err == nil:
			p.update(func(s *snapshot) { s.Committed++ })
			return nil
		case errors.Is(err, errChangedMind):
			p.update(func(s *snapshot) { s.RolledBack++ })
		default:
			return err
		}
	}
}

// arrivals sends one customer an order, in rushes: each second's share in the first third of it.
func arrivals(ctx context.Context, orders, rate int, line chan<- struct{}) error {
	start := time.Now()
	for i := range orders {
		if rate > 0 {
			second, rush := time.Duration(i/rate)*time.Second, time.Duration(i%rate)*time.Second/time.Duration(3*rate)
			select {
			case <-time.After(time.Until(start.Add(second + rush))):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		select {
		case line <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}
