package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/dedup"
	"github.com/millrace-go/millrace/dedup/redisdedup"
	"github.com/millrace-go/millrace/middleware"
	"github.com/millrace-go/millrace/outbox"
	"github.com/millrace-go/millrace/pgxtx"
)

// sayer is a consumer that confirms, or does not.
type sayer struct {
	chain   middleware.Config
	handler message.NoPublishHandlerFunc
	box     *outbox.Box                            // takes the confirmations of transactions
	stored  func(ctx context.Context) (int, error) // of those, how many it holds
	close   func()
}

// storedWords is the figure of a sample that says how many messages with confirmations the broker has taken.
const storedWords = "messages of confirmations"

// confirmOurs consumes messages that ask for confirmation. A message counts when its confirmation is stored too.
func confirmOurs(ctx context.Context, p params, begin func()) (Sample, error) {
	c, err := openSayer(ctx, p)
	if err != nil {
		return Sample{}, err
	}
	defer c.close()
	c.chain.Logger = warnings()
	var handled, words, stored atomic.Int64
	moved := func() int { return int(handled.Load()) }
	if p.Way != silentName {
		pub, err := p.Broker.ours(warnings())
		if err != nil {
			return Sample{}, err
		}
		defer pub.Close()
		c.chain.Confirm = middleware.ConfirmConfig{Group: "bench", Publisher: newSaid(pub, &words, &stored), Background: p.Way == backgroundName}
		if p.Way == insideName {
			c.chain.Confirm.Outbox = c.box.Publisher()
		} else {
			moved = func() int { return int(min(handled.Load(), words.Load())) }
		}
	}
	chain, err := middleware.Recommended(c.chain)
	if err != nil {
		return Sample{}, err
	}
	sub, err := p.Broker.subscriber(p.Options[concurrency.name])
	if err != nil {
		return Sample{}, err
	}
	count := func(next message.HandlerFunc) message.HandlerFunc {
		return func(msg *message.Message) ([]*message.Message, error) {
			out, err := next(msg)
			if err == nil {
				handled.Add(1)
			}
			return out, err
		}
	}
	s, err := consumedBy(ctx, p, sub, append([]message.HandlerMiddleware{count}, chain...), c.handler, moved, begin)
	s.Extra = map[string]float64{storedWords: float64(stored.Load())}
	if err == nil && p.Way == insideName {
		n, failed := c.stored(ctx)
		err = failed
		if err == nil && n < s.Moved {
			err = fmt.Errorf("%d handled, but only %d confirmations are in the outbox", s.Moved, n)
		}
	}
	return s, err
}

func openSayer(ctx context.Context, p params) (*sayer, error) {
	switch p.Handler {
	case inboxPgx:
		cfg, err := pgxpool.ParseConfig(p.DB.URL)
		if err != nil {
			return nil, err
		}
		cfg.MaxConns = int32(p.Options[concurrency.name] + 4)
		pool, err := pgxpool.NewWithConfig(ctx, cfg)
		if err != nil {
			return nil, err
		}
		return transactionalSayer(ctx, pgxtx.Pool(pool), pool.Close, func(ctx context.Context, tx pgx.Tx, statement string, args ...any) error {
			_, err := tx.Exec(ctx, statement, args...)
			return err
		}, func(ctx context.Context, tx pgx.Tx, statement string, to *int) error {
			return tx.QueryRow(ctx, statement).Scan(to)
		})
	case inboxSQL:
		raw, err := openSQL(p.DB)
		if err != nil {
			return nil, err
		}
		raw.SetMaxOpenConns(p.Options[concurrency.name] + 4)
		raw.SetMaxIdleConns(p.Options[concurrency.name] + 4)
		return transactionalSayer(ctx, millrace.SQL(raw), func() { _ = raw.Close() }, func(ctx context.Context, tx *millrace.Tx, statement string, args ...any) error {
			_, err := tx.ExecContext(ctx, statement, args...)
			return err
		}, func(ctx context.Context, tx *millrace.Tx, statement string, to *int) error {
			return tx.QueryRowContext(ctx, statement).Scan(to)
		})
	}
	opts, err := redis.ParseURL(p.Dedup)
	if err != nil {
		return nil, errors.New("redis: the address is not a URL")
	}
	opts.ContextTimeoutEnabled = true
	opts.PoolSize = p.Options[concurrency.name]
	client := redis.NewClient(opts)
	return &sayer{
		chain:   middleware.Config{Dedup: redisdedup.New(client, redisdedup.Config{Namespace: "bench-confirm"})},
		handler: func(*message.Message) error { return nil },
		close:   func() { _ = client.Close() },
	}, nil
}

// transactionalSayer writes a row with each message, in the transaction of its inbox.
func transactionalSayer[T any](ctx context.Context, db millrace.TxDB[T], closeAll func(),
	exec func(ctx context.Context, tx T, statement string, args ...any) error, count func(ctx context.Context, tx T, statement string, to *int) error) (*sayer, error) {
	err := millrace.Migrate(ctx, db, dedup.Migrations(), outbox.Migrations())
	if err != nil {
		return nil, err
	}
	if err := millrace.InTx(ctx, db, func(ctx context.Context, tx T) error { return exec(ctx, tx, shopTable) }); err != nil {
		return nil, err
	}
	inbox, err := dedup.NewInbox(db, dedup.InboxConfig{})
	if err != nil {
		return nil, err
	}
	once, err := middleware.Transactional(db, inbox, middleware.TransactionalConfig{})
	if err != nil {
		return nil, err
	}
	box, err := outbox.New(db, outbox.Config{})
	return &sayer{
		chain: middleware.Config{Transactional: once}, box: box, close: closeAll,
		handler: func(msg *message.Message) error {
			return millrace.InTx(msg.Context(), db, func(ctx context.Context, tx T) error {
				return exec(ctx, tx, shopInsert, "customer", 1)
			}, millrace.Mandatory())
		},
		stored: func(ctx context.Context) (n int, err error) {
			err = millrace.InTx(ctx, db, func(ctx context.Context, tx T) error {
				return count(ctx, tx, `SELECT count(*) FROM millrace_outbox WHERE topic = '`+confirmTopic+`'`, &n)
			})
			return n, err
		},
	}, err
}

// batches is a publisher that sends many messages in one call.
type batches interface {
	message.Publisher
	PublishBatch(ctx context.Context, topics []string, msgs []*message.Message) []error
}

// said counts what a publisher of confirmations has stored: the confirmations, and the messages that carry them.
type said struct {
	batches
	words, stored *atomic.Int64
}

func newSaid(pub message.Publisher, words, stored *atomic.Int64) message.Publisher {
	return &said{pub.(batches), words, stored}
}

func (s *said) PublishBatch(ctx context.Context, topics []string, msgs []*message.Message) []error {
	errs := s.batches.PublishBatch(ctx, topics, msgs)
	for i, err := range errs {
		if err == nil {
			s.stored.Add(1)
			s.words.Add(int64(bytes.Count(msgs[i].Payload, []byte(`"outcome":`)))) // no id here has that in it
		}
	}
	return errs
}
