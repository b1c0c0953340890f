package pgxtx_test

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/pgxtx"
)

func ExamplePool() {
	var ctx context.Context
	var pool *pgxpool.Pool // the application's

	db := pgxtx.Pool(pool)
	_ = millrace.InTx(ctx, db, func(ctx context.Context, tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `UPDATE stock SET n = n - 1 WHERE article = $1`, "tea"); err != nil {
			return err
		}
		return millrace.AfterCommit(ctx, func(ctx context.Context) error {
			return nil // once it has committed
		})
	})
}

// A savepoint in pgx's own style takes hooks and messages along.
func ExamplePool_savepoint() {
	var ctx context.Context
	var pool *pgxpool.Pool

	_ = millrace.InTx(ctx, pgxtx.Pool(pool), func(ctx context.Context, tx pgx.Tx) error {
		err := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, `INSERT INTO stock VALUES ('tea', 1)`)
			return err
		})
		if err != nil {
			_, err = tx.Exec(ctx, `UPDATE stock SET n = n + 1 WHERE article = 'tea'`)
		}
		return err
	})
}
