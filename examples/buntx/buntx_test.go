package buntx_test

import (
	"context"
	"testing"

	"github.com/uptrace/bun"
	"github.com/uptrace/bun/dialect/pgdialect"
	"github.com/uptrace/bun/dialect/sqlitedialect"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/examples/buntx"
	"github.com/millrace-go/millrace/examples/internal/recipetest"
	"github.com/millrace-go/millrace/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

type Order struct {
	ID       string `bun:",pk"`
	Customer string
}

func TestInTxPostgres(t *testing.T) {
	t.Parallel()
	s := recipetest.Postgres(t)
	recipetest.Check(t, s, inTx(s, bun.NewDB(s.SQL, pgdialect.New())))
}

func TestInTxSQLite(t *testing.T) {
	t.Parallel()
	s := recipetest.SQLite(t)
	recipetest.Check(t, s, inTx(s, bun.NewDB(s.SQL, sqlitedialect.New())))
}

func TestTransactionPostgres(t *testing.T) {
	t.Parallel()
	s := recipetest.Postgres(t)
	recipetest.Check(t, s, transaction(s, bun.NewDB(s.SQL, pgdialect.New())))
}

func TestTransactionSQLite(t *testing.T) {
	t.Parallel()
	s := recipetest.SQLite(t)
	recipetest.Check(t, s, transaction(s, bun.NewDB(s.SQL, sqlitedialect.New())))
}

// inTx begins with millrace.InTx.
func inTx(s *recipetest.Shop, bdb *bun.DB) recipetest.Recipe[*millrace.Tx] {
	return recipetest.Recipe[*millrace.Tx]{
		InTx: func(ctx context.Context, fn func(context.Context, *millrace.Tx) error) error {
			return millrace.InTx(ctx, s.DB, fn)
		},
		Insert: func(ctx context.Context, tx *millrace.Tx, id, customer string) error {
			order := Order{id, customer}
			if _, err := bdb.NewInsert().Conn(tx).Model(&order).Exec(ctx); err != nil {
				return err
			}
			return bdb.NewSelect().Conn(tx).Model(&order).WherePK().Scan(ctx)
		},
	}
}

// transaction begins with bun.
func transaction(s *recipetest.Shop, bdb *bun.DB) recipetest.Recipe[bun.Tx] {
	return recipetest.Recipe[bun.Tx]{
		InTx: func(ctx context.Context, fn func(context.Context, bun.Tx) error) error {
			return buntx.Transaction(ctx, bdb, s.DB, nil, fn)
		},
		Insert: func(ctx context.Context, tx bun.Tx, id, customer string) error {
			order := Order{id, customer}
			if _, err := tx.NewInsert().Model(&order).Exec(ctx); err != nil {
				return err
			}
			return tx.NewSelect().Model(&order).WherePK().Scan(ctx)
		},
	}
}
