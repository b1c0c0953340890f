package half

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"time"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/internal/migrate"
	"github.com/millrace-go/millrace/internal/txn"
	"github.com/millrace-go/millrace/outbox"
)

//go:embed migrations
var migrations embed.FS

// Migrations is the schema of the half messages, in the outbox's database, for millrace.Migrate.
func Migrations() millrace.Part { return part("half", migrations, "migrations") }

//go:embed barrier
var barriers embed.FS

// BarrierMigrations is the schema of the witnesses, in each database that Config.Witnesses names.
func BarrierMigrations() millrace.Part { return part("barrier", barriers, "barrier") }

func part(name string, files embed.FS, dir string) millrace.Part {
	sub, err := fs.Sub(files, dir)
	if err != nil {
		panic("half: embedded migrations: " + err.Error()) // cannot happen: the path is a constant
	}
	return millrace.Part{Name: name, Files: sub}
}

// Config of the half messages of one outbox. Replicas want the same.
type Config struct {
	// Witnesses are the SQL databases of the business in which local transactions leave a witness, by a
	// name that is stored with each message: keep it when the database moves.
	Witnesses map[string]millrace.DB
	// Checkers say what became of a local transaction that leaves no witness, by topic; "" is for all
	// topics that have none of their own.
	Checkers map[string]Checker
	// Callback asks remote producers by HTTP. Nil: their requests must not name a check_url.
	Callback *Callback

	// FirstCheck is how long after Prepare a message that is undecided is checked back for the first
	// time, and CheckEvery how often from then on. Defaults 6 s and 30 s, those of RocketMQ.
	FirstCheck time.Duration
	CheckEvery time.Duration
	// MaxChecks is how many checks without a definite answer a message gets until it is parked: kept,
	// visible, and checked again after Resume. Default 15. A check for which this replica has neither
	// checker nor database is none.
	MaxChecks int
	// CheckTimeout bounds one check. Default 10 s.
	CheckTimeout time.Duration
	// MaxAge is how long after Prepare a local transaction may commit. With a witness it is enforced
	// (one that comes later fails); without, it is the business's promise, and until then the answer
	// RolledBack is not acted on. The clocks of the outbox's database and the business's may differ by
	// less than that. Default 30 min.
	MaxAge time.Duration
	// Retention is how long decided messages, witnesses and tombstones are kept. Default 7 days; at
	// least four times MaxAge. A message that is undecided for longer than half of it is never
	// dropped by itself: its witness may have been purged.
	Retention time.Duration
	// Batch is how many messages are checked at once. Default 16.
	Batch int

	// OnParked is told when a message was parked, OnRevived when one that a checker had called rolled
	// back was committed after all: somebody should look at that checker. Run and Commit wait for
	// them; Run calls them for several messages at once.
	OnParked, OnRevived func(ctx context.Context, m Info)
	// Logger gets ids, topics and errors, no content. Default: nothing.
	Logger *slog.Logger
}

// Messages are the half messages of one outbox. Make it with New. Safe for concurrent use.
type Messages struct {
	box  *outbox.Box
	pool txn.Beginner
	cfg  Config
	log  *slog.Logger
}

// New checks cfg and joins all its errors. db is the database of box. It opens and starts nothing.
func New(db millrace.DB, box *outbox.Box, cfg Config) (*Messages, error) {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf("half: "+format, args...)) }
	fill(&cfg.FirstCheck, 6*time.Second, "FirstCheck", bad)
	fill(&cfg.CheckEvery, 30*time.Second, "CheckEvery", bad)
	fill(&cfg.CheckTimeout, 10*time.Second, "CheckTimeout", bad)
	fill(&cfg.MaxAge, 30*time.Minute, "MaxAge", bad)
	fill(&cfg.Retention, max(7*24*time.Hour, 4*cfg.MaxAge), "Retention", bad)
	fill(&cfg.MaxChecks, 15, "MaxChecks", bad)
	fill(&cfg.Batch, 16, "Batch", bad)
	if cfg.MaxAge > 0 && cfg.Retention < 4*cfg.MaxAge {
		bad("Config.Retention is %v: at least four times MaxAge (%v), or a tombstone could go before its transaction", cfg.Retention, cfg.MaxAge)
	}
	for name, w := range cfg.Witnesses {
		if name == "" || len(name) > 64 || w == nil {
			bad("Config.Witnesses[%q]: want a name of 1 to 64 bytes and a database", name)
		} else if _, ok := w.TxnPool().(txn.Beginner); !ok {
			bad("Config.Witnesses[%q]: this handle begins no transactions", name)
		}
	}
	for topic, c := range cfg.Checkers {
		if c == nil {
			bad("Config.Checkers[%q] is nil", topic)
		}
	}
	if cfg.Callback != nil {
		own := *cfg.Callback
		cfg.Callback, errs = &own, append(errs, own.check())
	}
	m := &Messages{box: box, cfg: cfg, log: cfg.Logger}
	switch {
	case db == nil || box == nil:
		bad("New needs an outbox and its database")
	default:
		pool, ok := db.TxnPool().(txn.Beginner)
		if !ok {
			bad("this database handle begins no transactions")
		}
		m.pool = pool
	}
	if m.log == nil {
		m.log = slog.New(slog.DiscardHandler)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return m, nil
}

func fill[T int | time.Duration](value *T, otherwise T, name string, bad func(string, ...any)) {
	if *value < 0 {
		bad("Config.%s is negative", name)
	}
	if *value <= 0 {
		*value = otherwise
	}
}

// Check reports whether the tables are there; an error for which IsSetup reports false is an outage.
func (m *Messages) Check(ctx context.Context) error {
	if err := checkPart(ctx, m.pool, Migrations(), "the outbox's database", "half.Migrations()"); err != nil {
		return err
	}
	for name, db := range m.cfg.Witnesses {
		if err := checkPart(ctx, db.TxnPool(), BarrierMigrations(), fmt.Sprintf("witness database %q", name), "half.BarrierMigrations()"); err != nil {
			return err
		}
	}
	return nil
}

// ErrNoTable says that a table of the half messages is missing or older than this package.
var ErrNoTable = errors.New("half: not migrated")

// IsSetup reports whether an error of Check or Run says that something must be set up.
func IsSetup(err error) bool { return errors.Is(err, ErrNoTable) || outbox.IsSetup(err) }

func checkPart(ctx context.Context, pool txn.Pool, p millrace.Part, where, call string) error {
	have, want, err := migrate.Versions(ctx, pool, p.Name, p.Files)
	if err != nil {
		return fmt.Errorf("half: check %s: %w", where, err)
	}
	if have < want {
		return fmt.Errorf("%w: %s has version %d of %d: call millrace.Migrate with %s", ErrNoTable, where, have, want, call)
	}
	return nil
}
