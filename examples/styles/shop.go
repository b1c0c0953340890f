package main

import (
	"context"
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"time"

	_ "modernc.org/sqlite"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/forwarder"
	"github.com/millrace-go/millrace/outbox"
	"github.com/millrace-go/millrace/outbox/half"
)

// shop is what the styles work with: a database of orders with an outbox in it, another database whose
// outbox has half messages, and a broker.
type shop struct {
	raw, rawMessages *sql.DB
	orders, messages *millrace.SQLDB
	outbox           *outbox.Box
	halves           *half.Messages
	broker           *broker

	stop func()
	work sync.WaitGroup
	errs chan error
}

// run places all orders in one style and counts.
func run(ctx context.Context, style style, orders int) (r result, err error) {
	folder, err := os.MkdirTemp("", "millrace-styles-")
	if err != nil {
		return r, err
	}
	defer func() { _ = os.RemoveAll(folder) }()
	s, err := openShop(ctx, folder, orders)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	for n := range orders {
		// What goes wrong with one order is not the next one's concern.
		_ = survive(func() error { return style.place(ctx, s, n) })
	}
	if err := s.settle(ctx); err != nil {
		return r, err
	}
	return s.count(ctx, style.name, orders)
}

func openShop(ctx context.Context, folder string, orders int) (*shop, error) {
	s := &shop{broker: newBroker(orders), errs: make(chan error, 3)}
	var err error
	if s.raw, err = openFile(folder, "orders.db"); err != nil {
		return nil, err
	}
	if s.rawMessages, err = openFile(folder, "messages.db"); err != nil {
		return nil, err
	}
	s.orders, s.messages = millrace.SQL(s.raw), millrace.SQL(s.rawMessages)
	if _, err := s.raw.ExecContext(ctx, `CREATE TABLE orders (id TEXT PRIMARY KEY)`); err != nil {
		return nil, err
	}
	err = errors.Join(
		millrace.Migrate(ctx, s.orders, outbox.Migrations(), half.BarrierMigrations()),
		millrace.Migrate(ctx, s.messages, outbox.Migrations(), half.Migrations()))
	if err != nil {
		return nil, err
	}
	if s.outbox, err = outbox.New(s.orders, outbox.Config{}); err != nil {
		return nil, err
	}
	other, err := outbox.New(s.messages, outbox.Config{})
	if err != nil {
		return nil, err
	}
	s.halves, err = half.New(s.messages, other, half.Config{
		Witnesses: map[string]millrace.DB{"orders": s.orders},
		// Longer than an order may take to be placed: what is checked back before is rolled back.
		FirstCheck: 3 * time.Second, CheckEvery: 100 * time.Millisecond,
	})
	if err != nil {
		return nil, err
	}
	return s, s.start(ctx, s.outbox, other)
}

func openFile(folder, name string) (*sql.DB, error) {
	return sql.Open("sqlite", "file:"+filepath.Join(folder, name)+"?_pragma=journal_mode(wal)&_pragma=synchronous(normal)&_pragma=busy_timeout(5000)")
}

// start runs a forwarder for each outbox, and what checks half messages back.
func (s *shop) start(ctx context.Context, boxes ...*outbox.Box) error {
	ctx, s.stop = context.WithCancel(ctx)
	for _, box := range boxes {
		f, err := forwarder.New(box, s.broker, forwarder.Config{PollInterval: 20 * time.Millisecond})
		if err != nil {
			return err
		}
		s.work.Go(func() { s.errs <- f.Run(ctx) })
	}
	s.work.Go(func() { s.errs <- s.halves.Run(ctx) })
	return nil
}

// settle waits until nothing is on its way.
func (s *shop) settle(ctx context.Context) error {
	for {
		waiting := 0
		for query, db := range map[string]*sql.DB{
			`SELECT count(*) FROM millrace_outbox`: s.raw,
			`SELECT (SELECT count(*) FROM millrace_outbox) + (SELECT count(*) FROM millrace_half WHERE state = 'prepared')`: s.rawMessages,
		} {
			var n int
			if err := db.QueryRowContext(ctx, query).Scan(&n); err != nil {
				return err
			}
			waiting += n
		}
		if waiting == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// count compares what was committed with what the broker has.
func (s *shop) count(ctx context.Context, style string, orders int) (result, error) {
	r := result{style: style}
	for n := range orders {
		var committed int
		if err := s.raw.QueryRowContext(ctx, `SELECT count(*) FROM orders WHERE id = ?`, id(n)).Scan(&committed); err != nil {
			return r, err
		}
		sent := s.broker.has(id(n))
		r.committed += committed
		if f := faultOf(n); committed == 0 && f != takenBack && f != crashBeforeCommit {
			r.refused++
		}
		switch {
		case committed == 1 && sent == 0:
			r.lost++
		case committed == 0 && sent > 0:
			r.ghosts++
		case sent > 1:
			r.doubled++
		}
	}
	return r, nil
}

func (s *shop) close() error {
	s.stop()
	s.work.Wait()
	close(s.errs)
	errs := []error{s.raw.Close(), s.rawMessages.Close()}
	for err := range s.errs {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
