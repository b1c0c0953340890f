package dedup_test

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/dedup"
)

func noError(err error) {
	if err != nil {
		panic(err)
	}
}

// The record and the effect are committed together. middleware.Transactional does this for each message.
func ExampleSQLInbox() {
	folder, err := os.MkdirTemp("", "inbox")
	noError(err)
	defer os.RemoveAll(folder)
	sqlDB, err := sql.Open("sqlite", "file:"+filepath.Join(folder, "shop.db")+"?_pragma=journal_mode(wal)")
	noError(err)
	defer sqlDB.Close()

	ctx := context.Background()
	db := millrace.SQL(sqlDB)
	noError(millrace.Migrate(ctx, db, dedup.Migrations()))
	inbox, err := dedup.NewInbox(db, dedup.InboxConfig{})
	noError(err)
	_, err = sqlDB.Exec(`CREATE TABLE invoices (order_id TEXT)`)
	noError(err)

	handle := func(messageID string) error {
		return millrace.InTx(ctx, db, func(ctx context.Context, tx *millrace.Tx) error {
			seen, err := inbox.Seen(ctx, dedup.Key{Consumer: "billing", MessageID: messageID})
			if err != nil || seen {
				return err
			}
			_, err = tx.ExecContext(ctx, `INSERT INTO invoices VALUES (?)`, messageID)
			return err
		})
	}
	for range 3 { // a broker may deliver more than once
		noError(handle("order-1"))
	}
	var invoices int
	noError(sqlDB.QueryRow(`SELECT count(*) FROM invoices`).Scan(&invoices))
	fmt.Println(invoices, "invoice")
	// Output: 1 invoice
}
