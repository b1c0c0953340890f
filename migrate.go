package millrace

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"regexp"

	"github.com/millrace-go/millrace/internal/migrate"
	"github.com/millrace-go/millrace/internal/txn"
)

// Part is the schema of one of millrace's packages, as outbox.Migrations and its like return it.
type Part struct {
	// Name is recorded in the version table: lower-case letters, digits and _, at most 64.
	Name string
	// Files holds <dialect>/NNNN_name.sql, numbered from 0001 without gaps; the dialects are postgres,
	// mysql and sqlite. They are plain SQL: each statement ends with a semicolon at the end of a line.
	// On MySQL, which commits each statement by itself, each must be one that may run again.
	Files fs.FS
}

var partName = regexp.MustCompile(`^[a-z][a-z0-9_]{0,63}$`)

// Migrate brings the tables of parts to their newest version. What has been applied is recorded in the
// table millrace_schema, so that any number of replicas may call it at every start, at the same time:
// they wait for one another, and only the first finds something to do.
//
// On PostgreSQL and SQLite a part is applied as a whole or not at all; on MySQL and MariaDB a part that
// failed half-way is completed by the next call. A version newer than the files know is left alone.
// Migrate is refused inside a transaction.
func Migrate(ctx context.Context, db DB, parts ...Part) error {
	pool := db.TxnPool()
	if _, open := txn.From(ctx, pool); open {
		return fmt.Errorf("millrace: migrate: %w: call Migrate outside of InTx", ErrTransactionOpen)
	}
	var errs []error
	for _, p := range parts {
		if !partName.MatchString(p.Name) || p.Files == nil {
			errs = append(errs, fmt.Errorf("millrace: migrate: part %q has no files, or a name with more than a-z, 0-9 and _", p.Name))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	for _, p := range parts {
		if err := migrate.Apply(ctx, pool, p.Name, p.Files); err != nil {
			return fmt.Errorf("millrace: migrate %s: %w", p.Name, err)
		}
	}
	return nil
}
