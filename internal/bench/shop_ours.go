package main

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/outbox"
	"github.com/millrace-go/millrace/pgxtx"
)

// ours makes the shop write with millrace's outbox on native pgx: with row, and without others hearing of it, or with notes.
func (s *shop) ours(ctx context.Context, d database, pool *pgxpool.Pool, way string, row func(ctx context.Context, tx pgx.Tx, seq int) error) error {
	db := pgxtx.Pool(pool)
	var cfg outbox.Config
	pause, byHand := pauseOf(way)
	switch {
	case way == withNotify:
		waker, err := pgxtx.NewWaker(d.URL, pgxtx.WakerConfig{})
		if err != nil {
			return err
		}
		cfg.Waker = waker
		s.close = func() {
			_ = waker.Close(context.WithoutCancel(ctx))
			pool.Close()
		}
	case way != withOurs && !byHand:
		return fmt.Errorf("no such way: %s", way)
	}
	var err error
	if s.box, err = outbox.New(db, cfg); err != nil {
		return err
	}
	if err := s.box.Migrate(ctx); err != nil {
		return err
	}
	if byHand {
		end, err := sendNotes(ctx, d.URL, s.box, pause)
		if err != nil {
			return err
		}
		s.close = func() { end(); pool.Close() }
	}
	s.poison = func(ctx context.Context) error {
		return millrace.InTx(ctx, db, func(ctx context.Context, _ pgx.Tx) error {
			// Names that begin so are RabbitMQ's own.
			return s.box.Publish(ctx, "amq.millrace-bench", newMessage(0, 0))
		})
	}
	s.order = func(ctx context.Context, seq int) error {
		return millrace.InTx(ctx, db, func(ctx context.Context, tx pgx.Tx) error {
			if err := row(ctx, tx, seq); err != nil {
				return err
			}
			return s.box.Publish(ctx, topic, newMessage(seq, keysOfShop))
		})
	}
	return nil
}
