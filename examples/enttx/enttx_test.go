package enttx_test

import (
	"context"
	"database/sql"
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

// A change of several statements that fails in the middle must leave nothing, also if the caller goes on.
func TestAFailedChangeIsUndoneAsAWhole(t *testing.T) {
	t.Parallel()
	s := recipetest.Postgres(t)
	place := func(ctx context.Context, drv dialect.Driver, id, friend string) error {
		return sqlgraph.CreateNode(ctx, drv, &sqlgraph.CreateSpec{
			Table: "customers",
			ID:    &sqlgraph.FieldSpec{Column: "id", Type: field.TypeString, Value: id},
			Edges: []*sqlgraph.EdgeSpec{{
				Rel: sqlgraph.M2M, Table: "friends", Columns: []string{"one", "other"},
				Target: &sqlgraph.EdgeTarget{
					Nodes:  []driver{friend},
					IDSpec: &sqlgraph.FieldSpec{Column: "id", Type: field.TypeString},
				},
			}},
		})
	}
	_ = place
	_ = s
	_ = errors.Is
}

type driver = any

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

// insert does what a generated client does.
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
