package dedup

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/internal/dberr"
	"github.com/millrace-go/millrace/internal/migrate"
	"github.com/millrace-go/millrace/internal/txn"
)

// Inbox remembers handled messages in the transaction of their effects: both are committed, or
// neither. The rules that every Inbox keeps are in deduptest.
type Inbox interface {
	// Seen records the message in the transaction that ctx carries, and reports whether it was
	// recorded before. Call it first in the transaction, and end that without effect if it reports
	// true.
	//
	// While another transaction that recorded the message is open, Seen waits: when that one commits
	// the message was seen, when it rolls back this one takes its place. So it waits within the limits of
	// ctx and the database's lock timeout, and returns their error.
	Seen(ctx context.Context, key Key) (bool, error)
}

//go:embed migrations
var migrations embed.FS

// Migrations is the schema of the SQL inbox, for millrace.Migrate.
func Migrations() millrace.Part {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		panic("dedup: embedded migrations: " + err.Error()) // cannot happen: the path is a constant
	}
	return millrace.Part{Name: "inbox", Files: files}
}

// InboxConfig is the configuration of a SQLInbox. The zero value is right.
type InboxConfig struct {
	// Keep is how long a message is remembered at least: longer than the longest time in which a
	// copy can come. Default 7 days.
	Keep time.Duration
	// PurgeEvery is how often Run forgets what is older. Default 1 min.
	PurgeEvery time.Duration
	// Logger gets what goes wrong in Run. Default: none.
	Logger *slog.Logger
}

// ErrNoTable: the inbox's table is missing or older than this package.
var ErrNoTable = errors.New("dedup: the inbox has not been migrated: call millrace.Migrate(ctx, db, dedup.Migrations()), " +
	"or apply the SQL files of dedup/migrations")

// SQLInbox is an Inbox on PostgreSQL, MySQL or MariaDB, and SQLite. Safe for concurrent use.
//
// At PostgreSQL's REPEATABLE READ and SERIALIZABLE a copy that arrives while the message is handled
// fails with a serialization error instead of being seen; it has to be tried again.
type SQLInbox struct {
	pool txn.Pool
	cfg  InboxConfig
}

var _ Inbox = (*SQLInbox)(nil)

// NewInbox returns an inbox in the database of db. It opens and starts nothing.
func NewInbox(db millrace.DB, cfg InboxConfig) (*SQLInbox, error) {
	if cfg.Keep == 0 {
		cfg.Keep = 7 * 24 * time.Hour
	}
	if cfg.PurgeEvery == 0 {
		cfg.PurgeEvery = time.Minute
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	var errs []error
	if db == nil {
		errs = append(errs, errors.New("dedup: inbox without a database"))
	}
	if cfg.Keep < time.Second {
		errs = append(errs, fmt.Errorf("dedup: InboxConfig.Keep %s: at least one second", cfg.Keep))
	}
	if cfg.PurgeEvery < 0 {
		errs = append(errs, fmt.Errorf("dedup: InboxConfig.PurgeEvery %s is negative", cfg.PurgeEvery))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return &SQLInbox{pool: db.TxnPool(), cfg: cfg}, nil
}

// Check reports whether the table is there: ErrNoTable if it is not, any other error is an outage.
func (b *SQLInbox) Check(ctx context.Context) error {
	part := Migrations()
	have, want, err := migrate.Versions(ctx, b.pool, part.Name, part.Files)
	if err != nil {
		return fmt.Errorf("dedup: check the inbox: %w", err)
	}
	if have < want {
		dialect, _ := b.pool.Dialect(ctx) // it is known by now
		return fmt.Errorf("%w/%s (version %d, want %d)", ErrNoTable, dialect, have, want)
	}
	return nil
}

// Seen implements Inbox. ctx has to carry a transaction of the inbox's database.
func (b *SQLInbox) Seen(ctx context.Context, key Key) (bool, error) {
	if err := checkInboxKey(key); err != nil {
		return false, err
	}
	tx, ok := txn.From(ctx, b.pool)
	if !ok {
		return false, fmt.Errorf("dedup: inbox: %w: call Seen with the context of millrace.InTx", millrace.ErrNoTransaction)
	}
	n, err := tx.Exec(ctx, insertSeen[tx.Dialect()], key.Consumer, storedID(key.MessageID))
	switch {
	case err == nil:
		return n == 0, nil
	case tx.Dialect() == txn.MySQL && dberr.MySQL(err) == duplicateEntry:
		return true, nil
	}
	return false, fmt.Errorf("dedup: inbox: %w", err)
}

const duplicateEntry = 1062

// MySQL has no ON CONFLICT DO NOTHING: INSERT IGNORE also hides truncation, and the row count of ON
// DUPLICATE KEY UPDATE depends on an option of the connection. A duplicate is error 1062, which fails
// the statement alone.
var insertSeen = map[txn.Dialect]string{
	txn.Postgres: `INSERT INTO millrace_inbox (consumer, message_id) VALUES ($1, $2) ON CONFLICT DO NOTHING`,
	txn.MySQL:    `INSERT INTO millrace_inbox (consumer, message_id, processed_at) VALUES (?, ?, UTC_TIMESTAMP(6))`,
	txn.SQLite:   `INSERT INTO millrace_inbox (consumer, message_id, processed_at) VALUES (?, ?, unixepoch()) ON CONFLICT DO NOTHING`,
}

const maxName = 200

func checkInboxKey(key Key) error {
	if err := key.Check(); err != nil {
		return err
	}
	if len(key.Consumer) > maxName || !printable(key.Consumer) {
		return fmt.Errorf("dedup: inbox: a consumer name is printable text of at most %d bytes", maxName)
	}
	return nil
}

// storedID is the id as it is kept. Ids come from outside: one that does not fit is kept as its hash,
// and so is one that looks like such a hash.
func storedID(id string) string {
	const hashed = "sha256:"
	if len(id) <= maxName && printable(id) && !strings.HasPrefix(id, hashed) {
		return id
	}
	sum := sha256.Sum256([]byte(id))
	return hashed + base64.RawURLEncoding.EncodeToString(sum[:])
}

func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
}
