package sqlxtx_test

import (
	"context"
	"database/sql"
	"testing"

	"github.com/jmoiron/sqlx"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/examples/internal/recipetest"
	"github.com/millrace-go/millrace/examples/sqlxtx"
	"github.com/millrace-go/millrace/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

type Order struct {
	ID       string
	Customer string
}

const insert = `INSERT INTO orders (id, customer) VALUES (:id, :customer)`

func TestInTxPostgres(t *testing.T) {
	t.Parallel()
	s := recipetest.Postgres(t)
	recipetest.Check(t, s, inTx(s, sqlx.NewDb(s.SQL, "pgx")))
}

func TestInTxSQLite(t *testing.T) {
	t.Parallel()
	s := recipetest.SQLite(t)
	recipetest.Check(t, s, inTx(s, sqlx.NewDb(s.SQL, "sqlite3")))
}

func TestTransactionPostgres(t *testing.T) {
	t.Parallel()
	s := recipetest.Postgres(t)
	recipetest.Check(t, s, transaction(s, sqlx.NewDb(s.SQL, "pgx")))
}

func TestTransactionMariaDB(t *testing.T) {
	t.Parallel()
	s := recipetest.MariaDB(t)
	recipetest.Check(t, s, transaction(s, sqlx.NewDb(s.SQL, "mysql")))
}

// inTx begins with millrace.InTx.
func inTx(s *recipetest.Shop, xdb *sqlx.DB) recipetest.Recipe[*millrace.Tx] {
	return recipetest.Recipe[*millrace.Tx]{
		InTx: func(ctx context.Context, fn func(context.Context, *millrace.Tx) error) error {
			return millrace.InTx(ctx, s.DB, fn)
		},
		Insert: func(ctx context.Context, tx *millrace.Tx, id, customer string) error {
			if _, err := sqlxtx.NamedExec(ctx, xdb, tx, insert, Order{id, customer}); err != nil {
				return err
			}
			var stored []Order
			if err := sqlxtx.Select(ctx, tx, &stored, xdb.Rebind(`SELECT * FROM orders WHERE id = ?`), id); err != nil {
				return err
			}
			if len(stored) != 1 {
				return sql.ErrNoRows
			}
			return nil
		},
	}
}

// transaction begins with sqlx.
func transaction(s *recipetest.Shop, xdb *sqlx.DB) recipetest.Recipe[*sqlx.Tx] {
	return recipetest.Recipe[*sqlx.Tx]{
		InTx: func(ctx context.Context, fn func(context.Context, *sqlx.Tx) error) error {
			return sqlxtx.Transaction(ctx, xdb, s.DB, fn)
		},
		Insert: func(ctx context.Context, tx *sqlx.Tx, id, customer string) error {
			if _, err := tx.NamedExecContext(ctx, insert, Order{id, customer}); err != nil {
				return err
			}
			var stored Order
			return tx.GetContext(ctx, &stored, tx.Rebind(`SELECT * FROM orders WHERE id = ?`), id)
		},
	}
}
