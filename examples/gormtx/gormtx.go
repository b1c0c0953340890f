// Package gormtx ties gorm to millrace. Copy the function that suits you.
package gormtx

import (
	"context"
	"database/sql"

	"gorm.io/gorm"

	"github.com/millrace-go/millrace"
)

// On is gorm on the transaction that millrace.InTx has begun:
//
//	err := millrace.InTx(ctx, db, func(ctx context.Context, tx *millrace.Tx) error {
//		if err := gormtx.On(ctx, gdb, tx).Create(&order).Error; err != nil {
//			return err
//		}
//		return box.Publish(ctx, "orders.placed", msg)
//	})
//
// gorm's Transaction on it is a savepoint; the hooks of one that fails are discarded with it. Do not ask it for a
// Session with PrepareStmt: gorm would leave the transaction.
func On(ctx context.Context, gdb *gorm.DB, tx *millrace.Tx) *gorm.DB {
	on := gdb.Session(&gorm.Session{Context: ctx, NewDB: true})
	on.Statement.ConnPool = pool{tx}
	return on
}

// Transaction is gorm's own, with hooks and the outbox:
//
//	err := gormtx.Transaction(ctx, gdb, db, func(ctx context.Context, tx *gorm.DB) error {
//		if err := tx.Create(&order).Error; err != nil {
//			return err
//		}
//		return box.Publish(ctx, "orders.placed", msg)
//	})
//
// tx goes through millrace's handle, so that savepoints are understood as with On. With gorm's TranslateError a COMMIT
// that the database refuses is reported as unknown, because gorm replaces the database's error.
func Transaction(ctx context.Context, gdb *gorm.DB, db *millrace.SQLDB, fn func(ctx context.Context, tx *gorm.DB) error, opts ...*sql.TxOptions) error {
	return millrace.Bind(ctx, db, func(ctx context.Context, b *millrace.Binding) error {
		return gdb.WithContext(ctx).Transaction(func(gtx *gorm.DB) error {
			return b.Run(ctx, gtx.Statement.ConnPool, func(ctx context.Context) error {
				return millrace.InTx(ctx, db, func(ctx context.Context, tx *millrace.Tx) error {
					return fn(ctx, On(ctx, gtx, tx))
				})
			})
		}, opts...)
	})
}

// pool is a gorm.ConnPool that gorm recognizes as a transaction. It never ends it: that is the owner's.
type pool struct{ *millrace.Tx }

func (pool) Commit() error   { return millrace.ErrTxControl }
func (pool) Rollback() error { return millrace.ErrTxControl }
