package enttx_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"testing"

	"entgo.io/ent/dialect"
	entsql "entgo.io/ent/dialect/sql"
	"entgo.io/ent/dialect/sql/sqlgraph"
	"entgo.io/ent/schema/field"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/examples/enttx"
	"github.com/millrace-go/millrace/examples/internal/recipetest"
	"github.com/millrace-go/millrace/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestOnPostgres(t *testing.T) {
	t.Parallel()
	s := recipetest.Postgres(t)
	recipetest.Check(t, s, on(s, dialect.Postgres))
}

func TestOnSQLite(t *testing.T) {
	t.Parallel()
	s := recipetest.SQLite(t)
	recipetest.Check(t, s, on(s, dialect.SQLite))
}

func TestTransactionPostgres(t *testing.T) {
	t.Parallel()
	s := recipetest.Postgres(t)
	recipetest.Check(t, s, transaction(s, dialect.Postgres))
}

func TestTransactionMariaDB(t *testing.T) {
	t.Parallel()
	s := recipetest.MariaDB(t)
	recipetest.Check(t, s, transaction(s, dialect.MySQL))
}

// ent takes a transaction for a change of several statements, which here is a savepoint.
func TestAChangeThatFailsHalfwayIsUndoneAlone(t *testing.T) {
	t.Parallel()
	s := recipetest.Postgres(t)
	err := millrace.InTx(t.Context(), s.DB, func(ctx context.Context, tx *millrace.Tx) error {
		drv := enttx.On(dialect.Postgres, tx)
		spec := sqlgraph.NewCreateSpec("customers", &sqlgraph.FieldSpec{Column: "id", Type: field.TypeString, Value: "bob"})
		spec.Edges = []*sqlgraph.EdgeSpec{{
			Rel: sqlgraph.M2M, Table: "no_such_table", Columns: []string{"customer_id", "friend_id"},
			Target: &sqlgraph.EdgeTarget{Nodes: []driver.Value{"ann"}, IDSpec: sqlgraph.NewFieldSpec("id", field.TypeString)},
		}}
		if err := sqlgraph.CreateNode(ctx, drv, spec); err == nil {
			t.Error("the edge was stored")
		}
		return insert(ctx, dialect.Postgres, drv, "order", "ann")
	})
	if err != nil {
		t.Fatal(err)
	}
	var customers, orders int
	row := s.SQL.QueryRowContext(t.Context(), `SELECT (SELECT COUNT(*) FROM customers), (SELECT COUNT(*) FROM orders)`)
	if err := row.Scan(&customers, &orders); err != nil {
		t.Fatal(err)
	}
	if customers != 1 || orders != 1 { // ann, and her order
		t.Errorf("%d customers, %d orders", customers, orders)
	}
}

// on begins with millrace.InTx.
func on(s *recipetest.Shop, name string) recipetest.Recipe[dialect.Driver] {
	return recipetest.Recipe[dialect.Driver]{
		InTx: func(ctx context.Context, fn func(context.Context, dialect.Driver) error) error {
			return millrace.InTx(ctx, s.DB, func(ctx context.Context, tx *millrace.Tx) error {
				return fn(ctx, enttx.On(name, tx))
			})
		},
		Insert: func(ctx context.Context, drv dialect.Driver, id, customer string) error {
			return insert(ctx, name, drv, id, customer)
		},
		Part: func(ctx context.Context, drv dialect.Driver, fn func(context.Context, dialect.Driver) error) error {
			tx, err := drv.Tx(ctx)
			if err != nil {
				return err
			}
			if err := fn(ctx, drv); err != nil {
				return errors.Join(err, tx.Rollback())
			}
			return tx.Commit()
		},
	}
}

// transaction begins with ent.
func transaction(s *recipetest.Shop, name string) recipetest.Recipe[*entsql.Tx] {
	drv := entsql.OpenDB(name, s.SQL)
	begin := func(ctx context.Context) (*entsql.Tx, error) {
		tx, err := drv.Tx(ctx)
		if err != nil {
			return nil, err
		}
		return tx.(*entsql.Tx), nil
	}
	return recipetest.Recipe[*entsql.Tx]{
		InTx: func(ctx context.Context, fn func(context.Context, *entsql.Tx) error) error {
			return enttx.Transaction(ctx, s.DB, begin, fn)
		},
		Insert: func(ctx context.Context, tx *entsql.Tx, id, customer string) error {
			return insert(ctx, name, tx, id, customer)
		},
	}
}

// insert does with ent's SQL builder what a generated client does: a client is 3,000 lines that show nothing more.
func insert(ctx context.Context, name string, tx dialect.ExecQuerier, id, customer string) error {
	query, args := entsql.Dialect(name).Insert("orders").Columns("id", "customer").Values(id, customer).Query()
	if err := tx.Exec(ctx, query, args, nil); err != nil {
		return err
	}
	query, args = entsql.Dialect(name).Select("customer").From(entsql.Table("orders")).Where(entsql.EQ("id", id)).Query()
	var rows entsql.Rows
	if err := tx.Query(ctx, query, args, &rows); err != nil {
		return err
	}
	defer rows.Close()
	stored, err := entsql.ScanString(rows)
	if err == nil && stored != customer {
		err = sql.ErrNoRows
	}
	return err
}
