package sqlstore_test

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/store"
	"github.com/millrace-go/millrace/store/sqlstore"
)

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func ExampleNew() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "millrace")
	check(err)
	defer os.RemoveAll(dir)
	sqlDB, err := sql.Open("sqlite", "file:"+filepath.Join(dir, "shop.db")+"?_pragma=journal_mode(wal)")
	check(err)
	defer sqlDB.Close()
	db := millrace.SQL(sqlDB)
	check(millrace.Migrate(ctx, db, sqlstore.Migrations()))
	st, err := sqlstore.New(db)
	check(err)

	// middleware.DelayedRetry does this, and delayed.Subscriber takes it again.
	check(st.Defer(ctx, store.Entry{Group: "billing", MessageID: "id-1"}, time.Hour))
	stats, err := st.Stats(ctx, "billing")
	check(err)
	fmt.Println("delayed:", stats.Stored, "due:", stats.Due)
	// Output: delayed: 1 due: 0
}
