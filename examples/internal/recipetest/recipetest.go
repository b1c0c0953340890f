// Package recipetest holds what each recipe for an ORM has to do, on a real database: an order, its message and its
// hook share one fate.
package recipetest

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	_ "github.com/go-sql-driver/mysql"
	_ "github.com/jackc/pgx/v5/stdlib"
	_ "modernc.org/sqlite"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/outbox"
)

// Shop is a database with the tables orders (id, customer) and customers (id), and an outbox.
type Shop struct {
	SQL *sql.DB
	DB  *millrace.SQLDB
	box *outbox.Box

	defers bool // an order of an unknown customer is refused only by COMMIT

	mu   sync.Mutex
	told []string // by hooks: which orders have committed
}

// Postgres is a Shop on pgx.
func Postgres(t *testing.T) *Shop {
	s := open(t, "pgx", testenv.Postgres(t), " REFERENCES customers DEFERRABLE INITIALLY DEFERRED")
	s.defers = true
	return s
}

// MariaDB is a Shop on go-sql-driver.
func MariaDB(t *testing.T) *Shop { return open(t, "mysql", testenv.MariaDB(t), "") }

// SQLite is a Shop on modernc.org/sqlite.
func SQLite(t *testing.T) *Shop { return open(t, "sqlite", testenv.SQLite(t), "") }

func open(t *testing.T, driver, dsn, references string) *Shop {
	t.Helper()
	sqlDB, err := sql.Open(driver, dsn)
	fatal(t, err)
	t.Cleanup(func() { _ = sqlDB.Close() })
	s := &Shop{SQL: sqlDB, DB: millrace.SQL(sqlDB)}
	s.box, err = outbox.New(s.DB, outbox.Config{})
	fatal(t, err)
	fatal(t, millrace.Migrate(t.Context(), s.DB, outbox.Migrations()))
	for _, text := range []string{
		`CREATE TABLE customers (id VARCHAR(40) PRIMARY KEY)`,
		`CREATE TABLE orders (id VARCHAR(40) PRIMARY KEY, customer VARCHAR(40) NOT NULL` + references + `)`,
		`INSERT INTO customers VALUES ('ann')`,
	} {
		_, err := sqlDB.ExecContext(t.Context(), text)
		fatal(t, err)
	}
	return s
}

// announce publishes a message and registers a hook, in the transaction of ctx.
func (s *Shop) announce(ctx context.Context, id string) error {
	if err := s.box.Publish(ctx, "orders.placed", message.NewMessage(id, []byte(id))); err != nil {
		return err
	}
	return millrace.AfterCommit(ctx, func(context.Context) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.told = append(s.told, id)
		return nil
	})
}

// Recipe is one style of transaction of one ORM; T is what it runs statements on.
type Recipe[T any] struct {
	// InTx runs fn in a transaction, with the context that Announce needs.
	InTx func(ctx context.Context, fn func(ctx context.Context, tx T) error) error
	// Insert stores an order, and reads it back.
	Insert func(ctx context.Context, tx T, id, customer string) error
	// Part runs fn in a part of the transaction that is undone alone. Default: millrace.Nested.
	Part func(ctx context.Context, tx T, fn func(ctx context.Context, tx T) error) error
}

// Check runs the recipe through all ends that a transaction can have.
func Check[T any](t *testing.T, s *Shop, r Recipe[T]) {
	t.Helper()
	if r.Part == nil {
		r.Part = func(ctx context.Context, tx T, fn func(context.Context, T) error) error {
			return millrace.InTx(ctx, s.DB, func(ctx context.Context, _ *millrace.Tx) error { return fn(ctx, tx) }, millrace.Nested())
		}
	}
	insert := func(ctx context.Context, tx T, id, customer string) error {
		if err := r.Insert(ctx, tx, id, customer); err != nil {
			return err
		}
		return s.announce(ctx, id)
	}
	place := func(t *testing.T, id, customer string, then func() error) error {
		return r.InTx(t.Context(), func(ctx context.Context, tx T) error {
			if err := insert(ctx, tx, id, customer); err != nil {
				return err
			}
			return then()
		})
	}
	failure := errors.New("no money")
	placeTwo := func(t *testing.T, first, second string, end error) {
		fatal(t, r.InTx(t.Context(), func(ctx context.Context, tx T) error {
			if err := insert(ctx, tx, first, "ann"); err != nil {
				return err
			}
			err := r.Part(ctx, tx, func(ctx context.Context, tx T) error {
				if err := insert(ctx, tx, second, "ann"); err != nil {
					return err
				}
				return end
			})
			if errors.Is(err, failure) {
				return nil
			}
			return err
		}))
	}

	t.Run("a commit keeps the order, publishes, and runs the hook afterwards", func(t *testing.T) {
		fatal(t, place(t, "committed", "ann", func() error {
			if s.heard("committed") {
				t.Error("the hook ran before the commit")
			}
			return nil
		}))
		s.want(t, "committed", "kept, published, told")
	})
	t.Run("an error leaves nothing", func(t *testing.T) {
		if err := place(t, "failed", "ann", func() error { return failure }); !errors.Is(err, failure) {
			t.Errorf("got error %v", err)
		}
		s.want(t, "failed", "")
	})
	t.Run("a panic leaves nothing", func(t *testing.T) {
		func() {
			defer func() {
				if v := recover(); v != "boom" {
					t.Errorf("got panic %v", v)
				}
			}()
			_ = place(t, "panicked", "ann", func() error { panic("boom") })
		}()
		s.want(t, "panicked", "")
	})
	if s.defers {
		t.Run("a COMMIT that is refused leaves nothing, and is not called unknown", func(t *testing.T) {
			err := place(t, "refused", "nobody", func() error { return nil })
			var unknown *millrace.UnknownOutcomeError
			if err == nil || errors.As(err, &unknown) {
				t.Errorf("got error %v", err)
			}
			s.want(t, "refused", "")
		})
	}
	t.Run("a part that fails is undone alone", func(t *testing.T) {
		placeTwo(t, "first", "undone", failure)
		s.want(t, "first", "kept, published, told")
		s.want(t, "undone", "")
	})
	t.Run("a part that ends well commits with the rest", func(t *testing.T) {
		placeTwo(t, "whole", "part", nil)
		s.want(t, "whole", "kept, published, told")
		s.want(t, "part", "kept, published, told")
	})
}

// want checks what became of an order.
func (s *Shop) want(t *testing.T, id, want string) {
	t.Helper()
	if got := s.fate(t, id); got != want {
		t.Errorf("order %s: got %q, want %q", id, got, want)
	}
	if n := s.SQL.Stats().InUse; n > 0 {
		t.Errorf("%d connections are still in use", n)
	}
}

func (s *Shop) fate(t *testing.T, id string) string {
	t.Helper()
	var fate []string
	for _, trace := range []struct{ name, table string }{{"kept", "orders"}, {"published", "millrace_outbox"}} {
		var n int
		query := fmt.Sprintf(`SELECT COUNT(*) FROM %s WHERE id = '%s'`, trace.table, id)
		fatal(t, s.SQL.QueryRowContext(t.Context(), query).Scan(&n))
		if n > 0 {
			fate = append(fate, trace.name)
		}
	}
	if s.heard(id) {
		fate = append(fate, "told")
	}
	return strings.Join(fate, ", ")
}

func (s *Shop) heard(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Contains(s.told, id)
}

func fatal(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
