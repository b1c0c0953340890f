package gormtx_test

import (
	"context"
	"testing"

	"go.uber.org/goleak"
	"gorm.io/driver/mysql"
	"gorm.io/driver/postgres"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/examples/gormtx"
	"github.com/millrace-go/millrace/examples/internal/recipetest"
	"github.com/millrace-go/millrace/internal/testenv"
)

func TestMain(m *testing.M) {
	// gorm has no way to end the cache of its prepared statements.
	testenv.Main(m, testenv.IgnoreLeak(goleak.IgnoreTopFunction("gorm.io/gorm/internal/lru.NewLRU[...].func1")))
}

type Order struct {
	ID       string
	Customer string
}

func TestOnPostgres(t *testing.T) {
	t.Parallel()
	s := recipetest.Postgres(t)
	recipetest.Check(t, s, on(s, open(t, postgres.New(postgres.Config{Conn: s.SQL}))))
}

func TestOnMariaDB(t *testing.T) {
	t.Parallel()
	s := recipetest.MariaDB(t)
	recipetest.Check(t, s, on(s, open(t, mysql.New(mysql.Config{Conn: s.SQL}))))
}

func TestTransactionPostgres(t *testing.T) {
	t.Parallel()
	s := recipetest.Postgres(t)
	recipetest.Check(t, s, transaction(s, open(t, postgres.New(postgres.Config{Conn: s.SQL}))))
}

func TestTransactionMariaDB(t *testing.T) {
	t.Parallel()
	s := recipetest.MariaDB(t)
	recipetest.Check(t, s, transaction(s, open(t, mysql.New(mysql.Config{Conn: s.SQL}))))
}

func TestTransactionWithPreparedStatements(t *testing.T) {
	t.Parallel()
	s := recipetest.Postgres(t)
	gdb := open(t, postgres.New(postgres.Config{Conn: s.SQL}))
	recipetest.Check(t, s, transaction(s, gdb.Session(&gorm.Session{PrepareStmt: true})))
}

func open(t *testing.T, dialector gorm.Dialector) *gorm.DB {
	t.Helper()
	gdb, err := gorm.Open(dialector, &gorm.Config{Logger: logger.Discard})
	if err != nil {
		t.Fatal(err)
	}
	return gdb
}

// on begins with millrace.InTx.
func on(s *recipetest.Shop, gdb *gorm.DB) recipetest.Recipe[*gorm.DB] {
	return recipetest.Recipe[*gorm.DB]{Insert: insert, Part: part,
		InTx: func(ctx context.Context, fn func(context.Context, *gorm.DB) error) error {
			return millrace.InTx(ctx, s.DB, func(ctx context.Context, tx *millrace.Tx) error {
				return fn(ctx, gormtx.On(ctx, gdb, tx))
			})
		},
	}
}

// transaction begins with gorm.
func transaction(s *recipetest.Shop, gdb *gorm.DB) recipetest.Recipe[*gorm.DB] {
	return recipetest.Recipe[*gorm.DB]{Insert: insert, Part: part,
		InTx: func(ctx context.Context, fn func(context.Context, *gorm.DB) error) error {
			return gormtx.Transaction(ctx, gdb, s.DB, fn)
		},
	}
}

func insert(_ context.Context, tx *gorm.DB, id, customer string) error {
	if err := tx.Create(&Order{id, customer}).Error; err != nil {
		return err
	}
	return tx.First(&Order{}, "id = ?", id).Error
}

// part is a savepoint of gorm's.
func part(ctx context.Context, tx *gorm.DB, fn func(context.Context, *gorm.DB) error) error {
	return tx.Transaction(func(tx *gorm.DB) error { return fn(ctx, tx) })
}
