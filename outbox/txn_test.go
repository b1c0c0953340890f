package outbox_test

import (
	"context"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/internal/txn"
)

type scanner = txn.Scanner

func txnFrom(ctx context.Context, db millrace.DB) (*txn.Tx, bool) { return txn.From(ctx, db.TxnPool()) }
