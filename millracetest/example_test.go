package millracetest_test

import (
	"context"
	"database/sql"
	"fmt"
	"testing"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/millracetest"
)

func ExampleCapture() {
	sqlDB, err := sql.Open("sqlite", ":memory:")
	if err != nil {
		panic(err)
	}
	defer sqlDB.Close()
	sqlDB.SetMaxOpenConns(1)
	db := millrace.SQL(sqlDB)

	// order is the code under test.
	order := func(ctx context.Context) error {
		return millrace.InTx(ctx, db, func(ctx context.Context, tx *millrace.Tx) error {
			return millrace.AfterCommit(ctx, func(context.Context) error {
				fmt.Println("mail sent")
				return nil
			}, millrace.Name("mail"))
		})
	}

	// A test has millracetest.RolledBack(t, db, ...) around it; it comes to this.
	_ = millrace.InTx(context.Background(), db, func(ctx context.Context, tx *millrace.Tx) error {
		got, err := millracetest.Capture(ctx, db, order)
		fmt.Println(got.Outcome, got.Hooks, err)
		fmt.Println("failed:", len(got.Run()))
		return millrace.MarkRollbackOnly(ctx)
	})
	// Output:
	// committed [{after commit mail}] <nil>
	// mail sent
	// failed: 0
}

func ExampleRolledBack() {
	var db *millrace.SQLDB // the application's

	_ = func(t *testing.T) {
		millracetest.RolledBack(t, db, func(ctx context.Context, tx *millrace.Tx) {
			if _, err := tx.ExecContext(ctx, `INSERT INTO stock VALUES ('tea', 2)`); err != nil {
				t.Fatal(err)
			}
		})
	}
}
