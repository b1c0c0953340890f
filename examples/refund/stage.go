package main

import (
	"context"
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/alicebob/miniredis/v2"
	_ "github.com/jackc/pgx/v5/stdlib"
	_ "modernc.org/sqlite"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/broker/rabbitmq"
	"github.com/millrace-go/millrace/broker/redisstreams"
)

// stage is where the story takes place: two databases, a broker, and the routers of two services.
type stage struct {
	cfg               config
	refunds, payments *sql.DB
	pub               message.Publisher

	topic, confirmations string

	stop func()
	work sync.WaitGroup
	mu   sync.Mutex
	errs []error
	undo []func() error
}

func open(ctx context.Context, cfg config) (s *stage, err error) {
	run := "refund_" + strings.ToLower(watermill.NewShortUUID()[:8])
	s = &stage{cfg: cfg, topic: run + "_execute", confirmations: run + "_confirmations", stop: func() {}}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	folder, err := os.MkdirTemp("", "millrace-refund-")
	if err != nil {
		return s, err
	}
	s.undo = append(s.undo, func() error { return os.RemoveAll(folder) })
	if s.cfg.broker == "" {
		m := miniredis.NewMiniRedis()
		if err := m.Start(); err != nil {
			return s, err
		}
		s.undo = append(s.undo, func() error { m.Close(); return nil })
		s.cfg.broker = "redis://" + m.Addr()
	}
	if s.refunds, err = s.database(cfg.refunds, filepath.Join(folder, "refunds.db")); err != nil {
		return s, err
	}
	if s.payments, err = s.database(cfg.payments, filepath.Join(folder, "payments.db")); err != nil {
		return s, err
	}
	if s.onRabbitMQ() {
		s.pub, err = rabbitmq.NewPublisher(rabbitmq.Config{URL: s.cfg.broker})
	} else {
		s.pub, err = redisstreams.NewPublisher(redisstreams.Config{URL: s.cfg.broker})
	}
	if err == nil {
		s.undo = append(s.undo, s.pub.Close)
	}
	return s, err
}

func (s *stage) onRabbitMQ() bool { return strings.HasPrefix(s.cfg.broker, "amqp") }

func (s *stage) database(url, file string) (*sql.DB, error) {
	driver := "pgx"
	if url == "" {
		driver, url = "sqlite", "file:"+file+"?_pragma=journal_mode(wal)&_pragma=busy_timeout(5000)"
	}
	db, err := sql.Open(driver, url)
	if err == nil {
		s.undo = append(s.undo, db.Close)
	}
	return db, err
}

// subscriber reads as a member of a consumer group. It is closed by its router.
func (s *stage) subscriber(group string) message.Subscriber {
	sub, err := s.newSubscriber(group)
	if err != nil {
		s.failed(err)
		return nil
	}
	return sub
}

func (s *stage) newSubscriber(group string) (message.Subscriber, error) {
	if s.onRabbitMQ() {
		return rabbitmq.NewSubscriber(rabbitmq.Config{URL: s.cfg.broker, ConsumerGroup: group})
	}
	return redisstreams.NewSubscriber(redisstreams.Config{URL: s.cfg.broker, ConsumerGroup: group})
}

// initialize makes the queue or group, without reading.
func (s *stage) initialize(_ context.Context, topic, group string) error {
	sub, err := s.newSubscriber(group)
	if err != nil {
		return err
	}
	i, ok := sub.(message.SubscribeInitializer)
	if !ok {
		return errors.Join(errors.New("this subscriber cannot make its queue before it reads"), sub.Close())
	}
	return errors.Join(i.SubscribeInitialize(topic), sub.Close())
}

// router runs a service until the stage is closed.
func (s *stage) router(ctx context.Context, name string, build func(*message.Router) error) {
	ctx, cancel := context.WithCancel(ctx)
	stop := s.stop
	s.stop = func() { cancel(); stop() }
	router, err := message.NewRouter(message.RouterConfig{CloseTimeout: 10 * time.Second}, watermill.NopLogger{})
	if err == nil {
		err = build(router)
	}
	if err != nil {
		cancel()
		s.failed(err)
		return
	}
	s.work.Go(func() {
		if err := millrace.RunRouter(ctx, router); err != nil {
			s.failed(errors.Join(errors.New(name), err))
		}
	})
	select {
	case <-router.Running():
	case <-ctx.Done():
	}
}

func (s *stage) failed(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.errs = append(s.errs, err)
}

func (s *stage) close() error {
	s.stop()
	s.work.Wait()
	for i := len(s.undo) - 1; i >= 0; i-- {
		if err := s.undo[i](); err != nil {
			s.failed(err)
		}
	}
	return errors.Join(s.errs...)
}
