// Package enttx ties ent to millrace. Copy what suits you.
package enttx

import (
	"context"
	"database/sql/driver"

	"entgo.io/ent/dialect"
	entsql "entgo.io/ent/dialect/sql"

	"github.com/millrace-go/millrace"
)

// On is ent's driver on the transaction that millrace.InTx has begun; name is ent's for the database
// (dialect.Postgres):
//
//	err := millrace.InTx(ctx, db, func(ctx context.Context, tx *millrace.Tx) error {
//		client := ent.NewClient(ent.Driver(enttx.On(dialect.Postgres, tx)))
//		if err := client.Order.Create().SetCustomer(customer).Exec(ctx); err != nil {
//			return err
//		}
//		return box.Publish(ctx, "orders.placed", msg)
//	})
//
// The client's own Tx is a savepoint. Interceptors and hooks of another client are not this one's, and
// entsql.WithVar works only in ent's own transactions.
func On(name string, tx *millrace.Tx) dialect.Driver {
	drv := entsql.OpenDB(name, nil)
	drv.ExecQuerier = tx
	return &txDriver{drv}
}

type txDriver struct{ *entsql.Driver }

// Close leaves the end of the transaction to its owner.
func (*txDriver) Close() error { return nil }

// Tx is also called by ent itself, for a change that takes several statements.
func (d *txDriver) Tx(ctx context.Context) (dialect.Tx, error) { return d.BeginTx(ctx, nil) }

// BeginTx cannot heed options: the transaction has begun.
func (d *txDriver) BeginTx(ctx context.Context, opts *entsql.TxOptions) (dialect.Tx, error) {
	if opts != nil && *opts != (entsql.TxOptions{}) {
		return nil, millrace.ErrUnsupported
	}
	s := &savepoint{d, context.WithoutCancel(ctx)}
	if err := s.exec("SAVEPOINT ent"); err != nil {
		return nil, err
	}
	return s, nil
}

type savepoint struct {
	*txDriver
	ctx context.Context
}

func (s *savepoint) Commit() error { return s.exec("RELEASE SAVEPOINT ent") }

func (s *savepoint) Rollback() error {
	if err := s.exec("ROLLBACK TO SAVEPOINT ent"); err != nil {
		return err
	}
	return s.exec("RELEASE SAVEPOINT ent")
}

func (s *savepoint) exec(text string) error { return s.Exec(s.ctx, text, []any{}, nil) }

// Tx is what ent's client.Tx gives, if the client was generated with --feature sql/execquery.
type Tx interface {
	millrace.ForeignTx
	driver.Tx
}

// Transaction gives ent's own transaction, with hooks and the outbox; begin is client.Tx:
//
//	err := enttx.Transaction(ctx, db, client.Tx, func(ctx context.Context, tx *ent.Tx) error {
//		if err := tx.Order.Create().SetCustomer(customer).Exec(ctx); err != nil {
//			return err
//		}
//		return box.Publish(ctx, "orders.placed", msg)
//	})
//
// For a part of it that can be undone alone, call millrace.InTx with ctx and millrace.Nested, and go on using tx.
func Transaction[T Tx](ctx context.Context, db *millrace.SQLDB, begin func(context.Context) (T, error), fn func(ctx context.Context, tx T) error) error {
	return millrace.Bind(ctx, db, func(ctx context.Context, b *millrace.Binding) error {
		tx, err := begin(ctx)
		if err != nil {
			return err
		}
		passed := false
		defer func() {
			if !passed {
				_ = tx.Rollback()
			}
		}()
		if err := b.Run(ctx, tx, func(ctx context.Context) error { return fn(ctx, tx) }); err != nil {
			return err
		}
		passed = true
		return tx.Commit()
	})
}
