// Package buntx ties bun to millrace.
//
// On a transaction that millrace.InTx has begun, bun needs no help: name it as the query's connection.
//
//	err := millrace.InTx(ctx, db, func(ctx context.Context, tx *millrace.Tx) error {
//		if _, err := bdb.NewInsert().Conn(tx).Model(&order).Exec(ctx); err != nil {
//			return err
//		}
//		return box.Publish(ctx, "orders.placed", msg)
//	})
//
// Code that wants a bun.IDB needs bun's own transaction. Copy Transaction for it.
package buntx

import (
	"context"
	"database/sql"

	"github.com/uptrace/bun"

	"github.com/millrace-go/millrace"
)

// Transaction is bun's RunInTx, with hooks and the outbox:
//
//	err := buntx.Transaction(ctx, bdb, db, nil, func(ctx context.Context, tx bun.Tx) error {
//		if _, err := tx.NewInsert().Model(&order).Exec(ctx); err != nil {
//			return err
//		}
//		return box.Publish(ctx, "orders.placed", msg)
//	})
//
// For a part of it that can be undone alone, call millrace.InTx with ctx and millrace.Nested, and go on using tx: after
// bun's own, tx.RunInTx, the hooks of a part that was undone would run.
func Transaction(ctx context.Context, bdb *bun.DB, db *millrace.SQLDB, opts *sql.TxOptions, fn func(ctx context.Context, tx bun.Tx) error) error {
	return millrace.Bind(ctx, db, func(ctx context.Context, b *millrace.Binding) error {
		return bdb.RunInTx(ctx, opts, func(ctx context.Context, tx bun.Tx) error {
			// Not tx itself: it knows only bun's placeholders, and drops the arguments of all others.
			return b.Run(ctx, tx.Tx, func(ctx context.Context) error { return fn(ctx, tx) })
		})
	})
}
