package txn

import (
	"context"
	"time"
)

// WriteWitness is the statement that a transaction writes its witness with.
func WriteWitness(d Dialect) string { return writeWitness[d] }

// Bury looks for the witness id of a transaction whose COMMIT was sent at a time.
func Bury(ctx context.Context, p Beginner, d Dialect, id string, sent time.Time) (Outcome, error) {
	return bury(ctx, p, d, &witness{id: id, sent: sent})
}

// Find is Bury after a look at the witness and at the transaction's number, which may be unknown.
func Find(ctx context.Context, p Beginner, d Dialect, id string, xid *string) (Outcome, error) {
	return find(ctx, p, d, &witness{id: id, sent: time.Now(), xid: xid})
}
