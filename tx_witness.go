package millrace

import (
	"context"
	"embed"
	"io/fs"
	"time"

	"github.com/millrace-go/millrace/internal/txn"
)

//go:embed migrations
var migrations embed.FS

// WitnessMigrations is the schema that Config.ResolveTimeout needs, for Migrate.
func WitnessMigrations() Part {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		panic("millrace: embedded migrations: " + err.Error()) // cannot happen: the path is a constant
	}
	return Part{Name: "witness", Files: files}
}

// PurgeWitnesses deletes the witnesses and tombstones that are older than olderThan by the database's
// clock, and reports how many. Call it from time to time where Config.ResolveTimeout is set; several
// replicas may do so at once. It works in small statements, so that it may be interrupted. Less than
// an hour is refused: a younger witness may still be looked for, and a younger tombstone be needed.
func PurgeWitnesses(ctx context.Context, db DB, olderThan time.Duration) (int64, error) {
	return txn.PurgeWitnesses(ctx, db.TxnPool(), olderThan)
}
