package millrace_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	_ "modernc.org/sqlite"

	"github.com/millrace-go/millrace"
)

// shop is a database in memory with one article.
func shop() (*sql.DB, *millrace.SQLDB) {
	db, err := sql.Open("sqlite", ":memory:")
	if err != nil {
		panic(err)
	}
	db.SetMaxOpenConns(1) // each connection would have a memory of its own
	if _, err := db.Exec(`CREATE TABLE stock (article TEXT PRIMARY KEY, n INT CHECK (n >= 0)); INSERT INTO stock VALUES ('tea', 2)`); err != nil {
		panic(err)
	}
	return db, millrace.SQL(db)
}

const sell = `UPDATE stock SET n = n - 1 WHERE article = 'tea'`

func ExampleInTx() {
	sqlDB, db := shop()
	defer sqlDB.Close()

	err := millrace.InTx(context.Background(), db, func(ctx context.Context, tx *millrace.Tx) error {
		if _, err := tx.ExecContext(ctx, sell); err != nil {
			return err // rolls back
		}
		return millrace.AfterCommit(ctx, func(context.Context) error {
			fmt.Println("sold")
			return nil
		})
	})
	fmt.Println(err)
	// Output:
	// sold
	// <nil>
}

// Code far below joins the transaction that its caller began, because it is in the context.
func ExampleInTx_join() {
	sqlDB, db := shop()
	defer sqlDB.Close()

	sellOne := func(ctx context.Context) error {
		return millrace.InTx(ctx, db, func(ctx context.Context, tx *millrace.Tx) error {
			_, err := tx.ExecContext(ctx, sell)
			return err
		})
	}
	err := millrace.InTx(context.Background(), db, func(ctx context.Context, tx *millrace.Tx) error {
		for range 3 { // there are two
			if err := sellOne(ctx); err != nil {
				return err
			}
		}
		return nil
	})
	var left int
	_ = sqlDB.QueryRow(`SELECT n FROM stock`).Scan(&left)
	fmt.Println(err != nil, "left:", left)
	// Output: true left: 2
}

func ExampleNested() {
	sqlDB, db := shop()
	defer sqlDB.Close()

	err := millrace.InTx(context.Background(), db, func(ctx context.Context, tx *millrace.Tx) error {
		err := millrace.InTx(ctx, db, func(ctx context.Context, tx *millrace.Tx) error {
			_, err := tx.ExecContext(ctx, `UPDATE stock SET n = n - 5`)
			return err
		}, millrace.Nested())
		fmt.Println("too many:", err != nil)
		_, err = tx.ExecContext(ctx, sell) // the transaction goes on
		return err
	})
	fmt.Println(err)
	// Output:
	// too many: true
	// <nil>
}

// Without a transaction the statements run one by one, and there is nothing that a hook could wait for.
func ExampleSupports() {
	sqlDB, db := shop()
	defer sqlDB.Close()

	look := func(ctx context.Context) error {
		return millrace.InTx(ctx, db, func(ctx context.Context, tx *millrace.Tx) error {
			var n int
			err := tx.QueryRowContext(ctx, `SELECT n FROM stock`).Scan(&n)
			hook := millrace.AfterCommit(ctx, func(context.Context) error { return nil })
			fmt.Println(n, hook)
			return err
		}, millrace.Supports())
	}
	_ = look(context.Background())
	_ = millrace.InTx(context.Background(), db, func(ctx context.Context, tx *millrace.Tx) error { return look(ctx) })
	// Output:
	// 2 millrace: no transaction in the context
	// 2 <nil>
}

// Everything reads; to write is an error of the database.
func ExampleReadOnly() {
	sqlDB, db := shop()
	defer sqlDB.Close()

	err := millrace.InTx(context.Background(), db, func(ctx context.Context, tx *millrace.Tx) error {
		_, err := tx.ExecContext(ctx, sell)
		return err
	}, millrace.ReadOnly())
	fmt.Println(err != nil)
	// Output: true
}

func ExampleMandatory() {
	sqlDB, db := shop()
	defer sqlDB.Close()

	err := millrace.InTx(context.Background(), db, func(ctx context.Context, tx *millrace.Tx) error {
		return nil
	}, millrace.Mandatory())
	fmt.Println(err)
	// Output: millrace: no transaction in the context
}

func ExampleMarkRollbackOnly() {
	sqlDB, db := shop()
	defer sqlDB.Close()

	err := millrace.InTx(context.Background(), db, func(ctx context.Context, tx *millrace.Tx) error {
		if _, err := tx.ExecContext(ctx, sell); err != nil {
			return err
		}
		return millrace.MarkRollbackOnly(ctx) // it was only a try
	})
	var left int
	_ = sqlDB.QueryRow(`SELECT n FROM stock`).Scan(&left)
	fmt.Println(err, "left:", left)
	// Output: <nil> left: 2
}

// The one error that leaves a doubt.
func ExampleUnknownOutcomeError() {
	sqlDB, db := shop()
	defer sqlDB.Close()

	err := millrace.InTx(context.Background(), db, func(ctx context.Context, tx *millrace.Tx) error {
		_, err := tx.ExecContext(ctx, sell)
		return err
	})
	var unknown *millrace.UnknownOutcomeError
	switch {
	case err == nil:
		fmt.Println("committed")
	case errors.As(err, &unknown):
		fmt.Println("the answer to COMMIT was lost: look before doing it again")
	default:
		fmt.Println("nothing of it remains:", err)
	}
	// Output: committed
}

func ExampleBind() {
	sqlDB, db := shop()
	defer sqlDB.Close()

	// transaction is what every ORM has.
	transaction := func(ctx context.Context, fn func(tx *sql.Tx) error) error {
		tx, err := sqlDB.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		if err := fn(tx); err != nil {
			return errors.Join(err, tx.Rollback())
		}
		return tx.Commit()
	}
	err := millrace.Bind(context.Background(), db, func(ctx context.Context, b *millrace.Binding) error {
		return transaction(ctx, func(tx *sql.Tx) error {
			return b.Run(ctx, tx, func(ctx context.Context) error {
				if _, err := tx.ExecContext(ctx, sell); err != nil {
					return err
				}
				return millrace.AfterCommit(ctx, func(context.Context) error {
					fmt.Println("sold")
					return nil
				})
			})
		})
	})
	fmt.Println(err)
	// Output:
	// sold
	// <nil>
}
