// Package sqlxtx ties sqlx to millrace. Copy the functions that suit you.
package sqlxtx

import (
	"context"
	"database/sql"

	"github.com/jmoiron/sqlx"

	"github.com/millrace-go/millrace"
)

// NamedExec is sqlx's NamedExecContext in the transaction that millrace.InTx has begun:
//
//	err := millrace.InTx(ctx, db, func(ctx context.Context, tx *millrace.Tx) error {
//		_, err := sqlxtx.NamedExec(ctx, xdb, tx, `INSERT INTO orders (id, customer) VALUES (:id, :customer)`, order)
//		if err != nil {
//			return err
//		}
//		return box.Publish(ctx, "orders.placed", msg)
//	})
func NamedExec(ctx context.Context, xdb *sqlx.DB, tx *millrace.Tx, query string, arg any) (sql.Result, error) {
	query, args, err := xdb.BindNamed(query, arg)
	if err != nil {
		return nil, err
	}
	return tx.ExecContext(ctx, query, args...)
}

// Select is sqlx's SelectContext, into a slice of structs, in the transaction that millrace.InTx has begun.
func Select(ctx context.Context, tx *millrace.Tx, dest any, query string, args ...any) error {
	rows, err := tx.QueryContext(ctx, query, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	return sqlx.StructScan(rows, dest)
}

// Transaction gives sqlx's own transaction, with hooks and the outbox:
//
//	err := sqlxtx.Transaction(ctx, xdb, db, func(ctx context.Context, tx *sqlx.Tx) error {
//		_, err := tx.NamedExecContext(ctx, `INSERT INTO orders (id, customer) VALUES (:id, :customer)`, order)
//		if err != nil {
//			return err
//		}
//		return box.Publish(ctx, "orders.placed", msg)
//	})
//
// For a part of it that can be undone alone, call millrace.InTx with ctx and millrace.Nested, and go on using tx.
func Transaction(ctx context.Context, xdb *sqlx.DB, db *millrace.SQLDB, fn func(ctx context.Context, tx *sqlx.Tx) error) error {
	return millrace.Bind(ctx, db, func(ctx context.Context, b *millrace.Binding) error {
		tx, err := xdb.BeginTxx(ctx, nil)
		if err != nil {
			return err
		}
		defer func() { _ = tx.Rollback() }() // after Commit it does nothing
		if err := b.Run(ctx, tx, func(ctx context.Context) error { return fn(ctx, tx) }); err != nil {
			return err
		}
		return tx.Commit()
	})
}
