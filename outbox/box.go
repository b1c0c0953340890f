package outbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/internal/txn"
)

// Config is the configuration of an outbox. The zero value is right.
type Config struct {
	// Prefix begins the names of the tables: a-z, 0-9 and _, at most 32. Default "millrace_". The
	// migrations must have been applied with the same one.
	Prefix string
	// MaxPayload is the size in bytes up to which a payload is accepted. Default 1 MiB.
	MaxPayload int
	// Key names the order key of a message that was not given one by WithKey. Default: none. It must
	// not change the message.
	Key func(topic string, msg *message.Message) string
	// Policies say what becomes of messages when the broker has them. Default: they are deleted.
	Policies []Policy
	// Confirming is what concerns messages whose Policy is AwaitConfirmation.
	Confirming Confirming
	// Retention says for how long is kept what is remembered beside the messages; see Box.RunRetention.
	Retention Retention
	// Propagators carry what the context of a Publish knows into the metadata of its messages, in this
	// order. The message that was given is not changed.
	Propagators []Propagator
	// AllowOutsideTx makes a Publish outside of any transaction insert in a transaction of its own,
	// instead of refusing. The message is then not tied to any change of data.
	AllowOutsideTx bool
	// Waker lets forwarders in other processes hear at once of what this one commits, and this one's of
	// what others commit. It stays the caller's to close. Default: they find it at their next poll.
	Waker Waker
	// Logger gets what is worth knowing and cannot be returned; ids only, no content. Default: nothing.
	Logger *slog.Logger
}

func (c Config) check() error {
	var errs []error
	if c.Prefix != "" && !validPrefix.MatchString(c.Prefix) {
		errs = append(errs, fmt.Errorf("outbox: Config.Prefix %q: want a-z, 0-9 and _, beginning with a letter, at most 32", c.Prefix))
	}
	if c.MaxPayload < 0 {
		errs = append(errs, errors.New("outbox: Config.MaxPayload is negative"))
	}
	for _, p := range c.Policies {
		errs = append(errs, p.check())
	}
	errs = append(errs, c.Confirming.check())
	errs = append(errs, c.Retention.check())
	errs = append(errs, checkPropagators(c.Propagators))
	return errors.Join(errs...)
}

// Box is the outbox of one database. Safe for concurrent use. It holds nothing that needs closing.
type Box struct {
	db      millrace.DB
	pool    txn.Pool
	cfg     Config
	encoder encoder
	store   *sqlStore
	wakes   wakes
	// statsLimit is StatsLimit, but for tests.
	statsLimit int
	log        *slog.Logger
}

// New checks cfg and joins all its errors. It opens and starts nothing, and does not ask the database
// anything; see Check.
func New(db millrace.DB, cfg Config) (*Box, error) {
	if db == nil {
		return nil, errors.Join(errors.New("outbox: New needs a database: millrace.SQL or pgxtx.Pool"), cfg.check())
	}
	if err := cfg.check(); err != nil {
		return nil, err
	}
	if cfg.Prefix == "" {
		cfg.Prefix = DefaultPrefix
	}
	log := cfg.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	pool := db.TxnPool()
	box := &Box{
		db:      db,
		pool:    pool,
		cfg:     cfg,
		encoder: newEncoder(cfg),
		store:   &sqlStore{pool: pool, prefix: cfg.Prefix, log: log, preparedAge: time.Minute},
		log:     log,

		statsLimit: StatsLimit,
	}
	box.store.compensation = &compensation{box: box}
	box.wakes.connect(cfg.Waker, log)
	return box, nil
}

// Publish gives messages to the transaction in ctx: they are forwarded if it commits, and never heard
// of if it does not. It copies them, so they may be changed or used again afterwards. No messages: no
// effect.
//
// All messages are checked before the first one counts. They are inserted just before COMMIT, which
// then reports what the database has against them, ErrDuplicateMessage above all; while a savepoint is
// open they are inserted at once. Metadata whose names begin with "millrace_" are dropped, but for what
// WithKey, WithDelay, WithDueAt and WithSchedule set.
//
// Without a transaction it returns ErrNoTransaction, unless Config.AllowOutsideTx.
func (b *Box) Publish(ctx context.Context, topic string, msgs ...*message.Message) error {
	entries, err := b.encode(ctx, topic, msgs...)
	if err != nil {
		return err
	}
	return b.accept(ctx, entries)
}

func (b *Box) encode(ctx context.Context, topic string, msgs ...*message.Message) ([]entry, error) {
	return b.encoder.encode(func(int) context.Context { return ctx }, topic, msgs)
}

// Flush inserts now what the transaction in ctx has published so far, for whoever wants the error
// earlier, or reads the outbox inside the transaction. The order of keys holds then only for what the
// transaction had locked before.
func (b *Box) Flush(ctx context.Context) error {
	tx, ok := txn.From(ctx, b.pool)
	if !ok {
		return b.noTransaction()
	}
	return tx.FlushNow(ctx)
}

// Check asks the database whether the outbox can be used, and names the remedy if not; IsSetup tells
// such an answer from an outage. What is unwise only, as commits that do not wait for the disk, goes to
// Config.Logger. It changes nothing. With a Waker, it sends a note to itself; a forwarder does not ask for
// that, because it can do without.
func (b *Box) Check(ctx context.Context) error {
	return errors.Join(b.store.Check(ctx), b.wakes.check(ctx))
}

// Store is the outbox as a forwarder sees it.
func (b *Box) Store() Store { return b.store }

// accept puts checked messages where ctx says.
func (b *Box) accept(ctx context.Context, entries []entry) error {
	if len(entries) == 0 {
		return nil
	}
	tx, ok := txn.From(ctx, b.pool)
	if !ok {
		if !b.cfg.AllowOutsideTx {
			return b.noTransaction()
		}
		return b.insertAlone(ctx, entries)
	}
	if tx.ReadOnly() {
		return fmt.Errorf("outbox: publish: %w", txn.ErrReadOnly)
	}
	made := false
	attached, err := tx.Attach(b, func() any {
		made = true
		return &buffer{dialect: tx.Dialect(), prefix: b.cfg.Prefix}
	})
	if err != nil {
		return fmt.Errorf("outbox: publish: %w", err)
	}
	buf := attached.(*buffer)
	if made {
		tx.OnEnd(func(o txn.Outcome) {
			if o != txn.RolledBack {
				b.wakes.signal(buf.published())
			}
		})
	}
	if !tx.Buffering() {
		return buf.insert(ctx, tx, entries)
	}
	full, err := buf.add(entries)
	if err != nil || !full {
		return err
	}
	return tx.FlushNow(ctx)
}

func (b *Box) insertAlone(ctx context.Context, entries []entry) error {
	dialect, err := b.pool.Dialect(ctx)
	if err != nil {
		return explain("publish", err)
	}
	stmts := insertions(dialect, b.cfg.Prefix, entries)
	if len(stmts) == 1 {
		_, err := b.pool.Exec(ctx, stmts[0].SQL, stmts[0].Args...)
		err = stmts[0].Check(0, err)
		b.wakes.signal(lanesOf(entries)) // an error may hide that it was committed
		return err
	}
	err = txn.Atomic(ctx, b.pool, txn.Options{}, func(q txn.Querier) error {
		for _, s := range stmts {
			if _, err := q.Exec(ctx, s.SQL, s.Args...); err != nil {
				return s.Check(0, err)
			}
		}
		return nil
	})
	b.wakes.signal(lanesOf(entries))
	return err
}

func (b *Box) noTransaction() error {
	return fmt.Errorf("outbox: %w of this outbox's database: call it inside millrace.InTx with the context that "+
		"InTx hands to the function (and msg.SetContext(ctx) for a Publisher), or set Config.AllowOutsideTx", ErrNoTransaction)
}
