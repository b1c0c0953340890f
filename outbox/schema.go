package outbox

import (
	"context"
	"embed"
	"hash/fnv"
	"io/fs"
	"regexp"
	"strings"
	"time"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/internal/migrate"
	"github.com/millrace-go/millrace/internal/txn"
)

//go:embed migrations
var migrations embed.FS

// DefaultPrefix begins the names of the outbox's tables unless Config.Prefix says otherwise.
const DefaultPrefix = "millrace_"

var validPrefix = regexp.MustCompile(`^[a-z][a-z0-9_]{0,31}$`)

// Migrations is the schema of an outbox, for millrace.Migrate. A Config that is given must be the one
// that New is given; of it only the Prefix counts.
func Migrations(cfg ...Config) millrace.Part {
	prefix := DefaultPrefix
	if len(cfg) > 0 && cfg[0].Prefix != "" {
		prefix = cfg[0].Prefix
	}
	sub, err := fs.Sub(migrations, "migrations")
	if err != nil {
		panic("outbox: embedded migrations: " + err.Error()) // cannot happen: the path is a constant
	}
	return millrace.Part{Name: part(prefix), Files: prefixed{sub, prefix}}
}

// part is the name under which the version table knows an outbox.
func part(prefix string) string { return prefix + "outbox" }

// version returns the schema version that this package works with.
func version(dialect txn.Dialect) (int, error) {
	return migrate.Latest(Migrations().Files, dialect)
}

// rename puts a prefix into a statement. The version table is common to all and keeps its name.
func rename(text, prefix string) string {
	if prefix == DefaultPrefix {
		return text
	}
	text = strings.ReplaceAll(text, DefaultPrefix, prefix)
	return strings.ReplaceAll(text, prefix+"schema", "millrace_schema")
}

// prefixed is a folder of SQL files with another table prefix.
type prefixed struct {
	fs.FS
	prefix string
}

// ReadFile implements fs.ReadFileFS.
func (p prefixed) ReadFile(name string) ([]byte, error) {
	text, err := fs.ReadFile(p.FS, name)
	if err != nil {
		return nil, err
	}
	return []byte(rename(string(text), p.prefix)), nil
}

// Migrate brings the outbox's tables to the version that this package works with: the same as
// millrace.Migrate with Migrations.
func (b *Box) Migrate(ctx context.Context) error {
	return millrace.Migrate(ctx, b.db, Migrations(b.cfg))
}

// Lane returns the lane of a key, or of the id of a message without one. It is part of the schema: a
// key that moved to another lane would lose its order.
func Lane(key string) int {
	h := fnv.New64a()
	_, _ = h.Write([]byte(key))
	return int(h.Sum64() % Lanes)
}

func micros(d time.Duration) int64 { return max(d.Microseconds(), 0) }
