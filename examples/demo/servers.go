package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"time"

	"github.com/alicebob/miniredis/v2"
	_ "github.com/jackc/pgx/v5/stdlib"
	"github.com/redis/go-redis/v9"
	_ "modernc.org/sqlite"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/outbox"
)

const tables = `
CREATE TABLE customers (id TEXT PRIMARY KEY, orders BIGINT NOT NULL);
CREATE TABLE orders (id TEXT PRIMARY KEY, customer TEXT NOT NULL, number BIGINT NOT NULL, amount BIGINT NOT NULL);`

// A bill for the same order twice is possible, so that one would be seen.
const billTable = `CREATE TABLE bills (order_id TEXT NOT NULL, amount BIGINT NOT NULL, billed_by TEXT NOT NULL)`

// stage is where a run takes place: databases, the in-process Redis, a folder. The parent builds it up and takes it down.
type stage struct {
	folder  string
	shop    *sql.DB
	billing *sql.DB
	undo    []func(context.Context) error
}

// build checks that every server answers, starts the in-process Redis if it is wanted, and creates what the run needs.
// It fills in cfg. Call tearDown also when it fails.
func (s *stage) build(ctx context.Context, cfg *config, folder string) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	s.folder = folder
	if err := s.servers(ctx, cfg); err != nil {
		return err
	}
	if err := s.databases(ctx, cfg); err != nil {
		return fmt.Errorf("the database: %w", withoutURL(err))
	}
	s.undo = append(s.undo, func(ctx context.Context) error { return removeTopic(ctx, *cfg) })
	return nil
}

// servers settles which Redis is used for what, and looks whether broker and Redis are there.
func (s *stage) servers(ctx context.Context, cfg *config) error {
	if cfg.Dedup == "" && !cfg.onRabbitMQ() {
		cfg.Dedup = cfg.Broker
	}
	if cfg.Broker == "" || cfg.Dedup == "" {
		own, err := s.inProcessRedis()
		if err != nil {
			return fmt.Errorf("the in-process Redis: %w", err)
		}
		if cfg.Broker == "" {
			cfg.Broker = own
		}
		if cfg.Dedup == "" {
			cfg.Dedup = own
		}
	}
	if err := reach(ctx, cfg.Broker); err != nil {
		return fmt.Errorf("the broker: %w", withoutURL(err))
	}
	if err := reach(ctx, cfg.Dedup); err != nil {
		return fmt.Errorf("the Redis of -dedup: %w", withoutURL(err))
	}
	return nil
}

// inProcessRedis starts a Redis in this process and returns its address.
func (s *stage) inProcessRedis() (string, error) {
	m := miniredis.NewMiniRedis()
	if err := m.Start(); err != nil {
		return "", err
	}
	// In miniredis time stands still for what expires, unless somebody moves it on.
	const step = 100 * time.Millisecond
	clock := time.NewTicker(step)
	stop := make(chan struct{})
	go func() {
		for {
			select {
			case <-clock.C:
				m.FastForward(step)
			case <-stop:
				return
			}
		}
	}()
	s.undo = append(s.undo, func(context.Context) error {
		clock.Stop()
		close(stop)
		m.Close()
		return nil
	})
	return "redis://" + m.Addr(), nil
}

func (s *stage) databases(ctx context.Context, cfg *config) error {
	if cfg.onPostgres() {
		if err := s.createSchema(ctx, cfg); err != nil {
			return err
		}
	} else {
		cfg.DB = s.folder
	}
	var err error
	if s.shop, err = openDatabase(*cfg, "shop"); err != nil {
		return err
	}
	s.undo = append(s.undo, func(context.Context) error { return s.shop.Close() })
	if s.billing, err = openDatabase(*cfg, "billing"); err != nil {
		return err
	}
	s.undo = append(s.undo, func(context.Context) error { return s.billing.Close() })

	if err := millrace.Migrate(ctx, millrace.SQL(s.shop), outbox.Migrations()); err != nil {
		return err
	}
	if _, err := s.shop.ExecContext(ctx, tables); err != nil {
		return err
	}
	for i := range customers {
		_, err := s.shop.ExecContext(ctx, `INSERT INTO customers (id, orders) VALUES ($1, 0)`, customer(i))
		if err != nil {
			return err
		}
	}
	_, err = s.billing.ExecContext(ctx, billTable)
	return err
}

// createSchema gives the run a schema of its own and points cfg.DB at it.
func (s *stage) createSchema(ctx context.Context, cfg *config) error {
	u, err := url.Parse(cfg.DB)
	if err != nil {
		return err
	}
	db, err := sql.Open("pgx", cfg.DB)
	if err != nil {
		return err
	}
	s.undo = append(s.undo, func(context.Context) error { return db.Close() })
	if _, err := db.ExecContext(ctx, `CREATE SCHEMA `+cfg.Run); err != nil {
		return err
	}
	s.undo = append(s.undo, func(ctx context.Context) error {
		_, err := db.ExecContext(ctx, `DROP SCHEMA `+cfg.Run+` CASCADE`)
		return err
	})
	q := u.Query()
	q.Set("search_path", cfg.Run)
	u.RawQuery = q.Encode()
	cfg.DB = u.String()
	return nil
}

// tearDown removes what build made, in reverse order.
func (s *stage) tearDown(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	var errs []error
	for i := len(s.undo) - 1; i >= 0; i-- {
		errs = append(errs, s.undo[i](ctx))
	}
	return errors.Join(errs...)
}

// waiting counts the messages that are still in the outbox.
func (s *stage) waiting(ctx context.Context) (n int, err error) {
	err = s.shop.QueryRowContext(ctx, `SELECT count(*) FROM millrace_outbox`).Scan(&n)
	return n, err
}

// openDatabase opens a service's database: a file of its own on SQLite, the same schema on PostgreSQL.
func openDatabase(cfg config, service string) (*sql.DB, error) {
	if cfg.onPostgres() {
		db, err := sql.Open("pgx", cfg.DB)
		if err == nil {
			db.SetMaxIdleConns(10) // the default of two connects anew all the time
		}
		return db, err
	}
	file := url.URL{Scheme: "file", Opaque: filepath.ToSlash(filepath.Join(cfg.DB, service+".db"))}
	file.RawQuery = "_txlock=immediate&_pragma=journal_mode(WAL)&_pragma=synchronous(NORMAL)&_pragma=busy_timeout(5000)"
	return sql.Open("sqlite", file.String())
}

// openRedis makes a client that keeps deadlines.
func openRedis(address string) (*redis.Client, error) {
	opts, err := redis.ParseURL(address)
	if err != nil {
		return nil, err
	}
	opts.ContextTimeoutEnabled = true
	return redis.NewClient(opts), nil
}
