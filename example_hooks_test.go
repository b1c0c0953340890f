package millrace_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/millrace-go/millrace"
)

func ExampleBeforeCommit() {
	sqlDB, db := shop()
	defer sqlDB.Close()

	err := millrace.InTx(context.Background(), db, func(ctx context.Context, tx *millrace.Tx) error {
		err := millrace.BeforeCommit(ctx, func(ctx context.Context) error {
			var n int
			if err := tx.QueryRowContext(ctx, `SELECT n FROM stock`).Scan(&n); err != nil {
				return err
			}
			if n == 0 {
				return errors.New("the last one stays in the window")
			}
			return nil
		})
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `UPDATE stock SET n = 0`)
		return err
	})
	fmt.Println("rolled back:", err)
	// Output: rolled back: the last one stays in the window
}

func ExampleAfterCommit() {
	sqlDB, db := shop()
	defer sqlDB.Close()

	err := millrace.InTx(context.Background(), db, func(ctx context.Context, tx *millrace.Tx) error {
		err := millrace.AfterCommit(ctx, func(ctx context.Context) error {
			// The transaction is over; a hook that writes begins its own.
			return millrace.InTx(ctx, db, func(ctx context.Context, tx *millrace.Tx) error {
				_, err := tx.ExecContext(ctx, `INSERT INTO stock VALUES ('receipts', 1)`)
				fmt.Println("receipt written")
				return err
			})
		})
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, sell)
		return err
	})
	fmt.Println(err)
	// Output:
	// receipt written
	// <nil>
}

func ExampleAfterRollback() {
	sqlDB, db := shop()
	defer sqlDB.Close()

	err := millrace.InTx(context.Background(), db, func(ctx context.Context, tx *millrace.Tx) error {
		picture := "upload-17.png" // written to a disk, which no database rolls back
		err := millrace.AfterRollback(ctx, func(context.Context) error {
			fmt.Println("removed", picture)
			return nil
		})
		if err != nil {
			return err
		}
		return errors.New("out of paper")
	})
	fmt.Println(err)
	// Output:
	// removed upload-17.png
	// out of paper
}

func ExampleAfterCompletion() {
	sqlDB, db := shop()
	defer sqlDB.Close()

	work := func(result error) {
		_ = millrace.InTx(context.Background(), db, func(ctx context.Context, tx *millrace.Tx) error {
			err := millrace.AfterCompletion(ctx, func(_ context.Context, outcome millrace.Outcome) error {
				fmt.Println(outcome) // or millrace.Unknown, when the answer to COMMIT was lost
				return nil
			})
			return errors.Join(err, result)
		})
	}
	work(nil)
	work(errors.New("no"))
	// Output:
	// committed
	// rolled back
}

func ExampleAfterCommitOrNow() {
	sqlDB, db := shop()
	defer sqlDB.Close()

	forget := func(ctx context.Context) error {
		return millrace.AfterCommitOrNow(ctx, func(context.Context) error {
			fmt.Println("cache forgotten")
			return nil
		})
	}
	_ = forget(context.Background()) // at once
	_ = millrace.InTx(context.Background(), db, func(ctx context.Context, tx *millrace.Tx) error {
		defer fmt.Println("end of fn")
		return forget(ctx)
	})
	// Output:
	// cache forgotten
	// end of fn
	// cache forgotten
}

// InTx does not wait for an Async hook; Close does.
func ExampleAsync() {
	sqlDB, db := shop()
	defer sqlDB.Close()

	slow := make(chan struct{})
	_ = millrace.InTx(context.Background(), db, func(ctx context.Context, tx *millrace.Tx) error {
		return millrace.AfterCommit(ctx, func(context.Context) error {
			<-slow
			fmt.Println("thumbnail drawn")
			return nil
		}, millrace.Async())
	})
	fmt.Println("committed")
	close(slow)
	fmt.Println(db.Close(context.Background()))
	// Output:
	// committed
	// thumbnail drawn
	// <nil>
}

func ExampleOrder() {
	sqlDB, db := shop()
	defer sqlDB.Close()

	say := func(what string) func(context.Context) error {
		return func(context.Context) error {
			fmt.Println(what)
			return nil
		}
	}
	_ = millrace.InTx(context.Background(), db, func(ctx context.Context, tx *millrace.Tx) error {
		return errors.Join(
			millrace.AfterCommit(ctx, say("last"), millrace.Order(10)),
			millrace.AfterCommit(ctx, say("second")),
			millrace.AfterCommit(ctx, say("first"), millrace.Order(-10)),
		)
	})
	// Output:
	// first
	// second
	// last
}

// With transactions of several databases open, a hook says which one it waits for.
func ExampleFor() {
	ordersDB, orders := shop()
	defer ordersDB.Close()
	archiveDB, archive := shop()
	defer archiveDB.Close()

	err := millrace.InTx(context.Background(), orders, func(ctx context.Context, _ *millrace.Tx) error {
		return millrace.InTx(ctx, archive, func(ctx context.Context, _ *millrace.Tx) error {
			committed := func(context.Context) error {
				fmt.Println("orders committed")
				return nil
			}
			fmt.Println(millrace.AfterCommit(ctx, committed))
			return millrace.AfterCommit(ctx, committed, millrace.For(orders))
		})
	})
	fmt.Println(err)
	// Output:
	// millrace: transactions of several databases are open; name one with For
	// orders committed
	// <nil>
}

// A hook that fails is reported. The transaction has committed, and InTx says so.
func ExampleHookError() {
	sqlDB, _ := shop()
	defer sqlDB.Close()
	db := millrace.SQL(sqlDB, millrace.Config{
		OnHookError: func(e millrace.HookError) { fmt.Printf("%s, %s: %v\n", e.Name, e.Phase, e.Err) },
	})
	err := millrace.InTx(context.Background(), db, func(ctx context.Context, tx *millrace.Tx) error {
		return errors.Join(
			millrace.AfterCommit(ctx, func(context.Context) error { return errors.New("no such host") }, millrace.Name("mail")),
			millrace.AfterCommit(ctx, func(context.Context) error { panic("nil map") }, millrace.Name("metrics")),
		)
	})
	fmt.Println(err)
	// Output:
	// mail, after commit: no such host
	// metrics, after commit: panic: nil map
	// <nil>
}
