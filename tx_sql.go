package millrace

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"sync"
	"time"

	"github.com/millrace-go/millrace/internal/dberr"
	"github.com/millrace-go/millrace/internal/gate"
	"github.com/millrace-go/millrace/internal/txn"
)

// Config holds what is common to all transactions of one DB. The zero value is right.
type Config struct {
	// CommitTimeout is how long COMMIT may take before its outcome is Unknown. Default 10 s.
	CommitTimeout time.Duration
	// ResolveTimeout, if set (30 s is a good choice), has InTx find out what became of a transaction
	// whose COMMIT was not answered, for up to so long, also when its context ends meanwhile. Only if
	// even that fails, the outcome stays Unknown; InTx returns within CommitTimeout and ResolveTimeout,
	// and the hooks' time. Bind does the same.
	//
	// It needs the table of WitnessMigrations, into which each transaction that is not read-only
	// writes a row: on pgx in COMMIT's round trip, through database/sql in one more. To find out,
	// another connection of the pool is used, which writes there too unless PostgreSQL can tell without;
	// while the transaction may still be open on the server, it asks again. See PurgeWitnesses.
	//
	// The connection whose COMMIT was not answered is closed, so that the pool may be of one. Only
	// go-sql-driver does not let it be closed: there the last free connection of a pool spends a round trip
	// on being able to, and the others stay with their COMMIT until the readTimeout of the DSN.
	//
	// At most 30 min. Default: an Unknown outcome is left so.
	ResolveTimeout time.Duration
	// RequiresNewTimeout is how long RequiresNew waits, inside of a transaction, for the second connection that it
	// needs; then it returns ErrPoolExhausted. Default 10 s.
	RequiresNewTimeout time.Duration
	// HookTimeout is the deadline of each hook's context, HooksTimeout that of all hooks of one
	// transaction together. A hook that overruns is reported, and waited for. Defaults 5 s and 30 s.
	HookTimeout  time.Duration
	HooksTimeout time.Duration
	// AsyncWorkers is how many Async hooks run at once, each in a goroutine that ends with it;
	// AsyncQueue is how many more may wait. Defaults 4 and 1000.
	AsyncWorkers int
	AsyncQueue   int
	// OnHookError is told of each hook that failed after its transaction had ended. It runs in the
	// goroutine of the hook, for an overrun in another one. Default: only logged.
	OnHookError func(HookError)
	// Logger gets what goes wrong after the transaction has ended. Default: nothing.
	Logger *slog.Logger
}

// HookError is one failure of a hook that ran after its transaction had ended: an error that it
// returned, *PanicError, ErrHookExited or ErrHookOverrun.
type HookError struct {
	Phase string // "after commit", "after rollback", "after completion"
	Name  string
	Err   error
	Stack []byte // of a panic
}

// TxnSettings is for millrace's own packages: c with the defaults. It joins the errors of all
// fields.
func (c Config) TxnSettings() (*txn.Settings, error) {
	var errs []error
	limit := func(name string, d, otherwise time.Duration) time.Duration {
		if d < 0 {
			errs = append(errs, fmt.Errorf("millrace: Config.%s is negative", name))
		}
		if d == 0 {
			return otherwise
		}
		return d
	}
	size := func(name string, n, otherwise int) int {
		return int(limit(name, time.Duration(n), time.Duration(otherwise)))
	}
	s := &txn.Settings{
		CommitTimeout:  limit("CommitTimeout", c.CommitTimeout, 10*time.Second),
		ResolveTimeout: limit("ResolveTimeout", c.ResolveTimeout, 0),
		SecondTimeout:  limit("RequiresNewTimeout", c.RequiresNewTimeout, 10*time.Second),
		HookTimeout:    limit("HookTimeout", c.HookTimeout, 5*time.Second),
		HooksTimeout:   limit("HooksTimeout", c.HooksTimeout, 30*time.Second),
		Async:          txn.NewCrew(size("AsyncWorkers", c.AsyncWorkers, 4), size("AsyncQueue", c.AsyncQueue, 1000)),
		Logger:         c.Logger,
	}
	if s.ResolveTimeout > txn.MaxResolve {
		errs = append(errs, fmt.Errorf("millrace: Config.ResolveTimeout is more than %v", txn.MaxResolve))
	}
	if s.Logger == nil {
		s.Logger = slog.New(slog.DiscardHandler)
	}
	if c.OnHookError != nil {
		s.OnHookError = func(e txn.HookError) { c.OnHookError(HookError(e)) }
	}
	return s, errors.Join(errs...)
}

// SQLDB is a *sql.DB on which InTx begins transactions. Safe for concurrent use.
type SQLDB struct{ pool *sqlPool }

var _ TxDB[*Tx] = (*SQLDB)(nil)

// SQL makes db usable with InTx. It opens and starts nothing, and never closes db. What kind of
// database it is, is asked at the first use. All SQL and *sql.DB of one database may be mixed: the
// transaction in a context is found by db, not by this wrapper. A nil db and a negative duration
// panic; at most one Config is given.
func SQL(db *sql.DB, cfg ...Config) *SQLDB {
	if db == nil || len(cfg) > 1 {
		panic("millrace: SQL wants a *sql.DB and at most one Config")
	}
	var c Config
	if len(cfg) == 1 {
		c = cfg[0]
	}
	s, err := c.TxnSettings()
	if err != nil {
		panic(err.Error())
	}
	return &SQLDB{&sqlPool{db: db, settings: s}}
}

// Close waits until the Async hooks have ended, or for ctx; then it returns an error that says how many
// have not. Hooks that become due later run in their caller's goroutine. Everything else goes on: Close
// does not close the *sql.DB. It may be called more than once, and need not be without Async hooks.
func (d *SQLDB) Close(ctx context.Context) error { return d.pool.settings.Async.Close(ctx) }

// TxnPool is for millrace's own packages.
func (d *SQLDB) TxnPool() txn.Pool { return d.pool }

// TxnBeginner is for millrace's own packages.
func (d *SQLDB) TxnBeginner() txn.Beginner { return d.pool }

// Handle is for millrace's own packages.
func (d *SQLDB) Handle(t *txn.Tx) *Tx { return &Tx{t: t, db: d.pool.db} }

// sqlPool is a *sql.DB as the state machine sees it.
type sqlPool struct {
	db       *sql.DB
	settings *txn.Settings

	mu      sync.Mutex
	dialect txn.Dialect
	heeds   bool       // COMMIT ends with the context of BEGIN
	gate    *gate.Gate // SQLite only

	// closable: a connection may be closed while another goroutine waits for its answer. lib/pq provides for that
	// and ignores contexts at COMMIT; of go-sql-driver only the second is true.
	closable bool
}

func (p *sqlPool) Identity() any           { return p.db }
func (p *sqlPool) Settings() *txn.Settings { return p.settings }

// Single implements txn.Beginner.
func (p *sqlPool) Single() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.dialect == txn.SQLite || p.db.Stats().MaxOpenConnections == 1
}

func (p *sqlPool) Dialect(ctx context.Context) (txn.Dialect, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dialect != "" {
		return p.dialect, nil
	}
	dialect, err := detect(ctx, p.db)
	if err != nil {
		return "", fmt.Errorf("millrace: which database is this: %w", err)
	}
	if dialect == txn.SQLite {
		path, err := fileOf(ctx, p.db)
		if err != nil {
			return "", fmt.Errorf("millrace: file of the SQLite database: %w", err)
		}
		p.gate = gate.For(path)
	}
	p.dialect = dialect
	p.heeds = dialect == txn.SQLite || driverName(p.db) == "*stdlib.Driver"
	p.closable = driverName(p.db) == "*pq.Driver"
	return dialect, nil
}

func driverName(db *sql.DB) string { return reflect.TypeOf(db.Driver()).String() }

// detect knows the common drivers by name and asks the database behind others.
func detect(ctx context.Context, db *sql.DB) (txn.Dialect, error) {
	switch name := driverName(db); {
	case name == "*stdlib.Driver", name == "*pq.Driver":
		return txn.Postgres, nil
	case name == "*mysql.MySQLDriver":
		return txn.MySQL, nil
	case name == "*sqlite.Driver", name == "*sqlite3.SQLiteDriver":
		return txn.SQLite, nil
	}
	var version string
	err := db.QueryRowContext(ctx, "SELECT version()").Scan(&version)
	switch {
	case err == nil && strings.HasPrefix(version, "PostgreSQL"):
		return txn.Postgres, nil
	case err == nil:
		return txn.MySQL, nil
	}
	if db.QueryRowContext(ctx, "SELECT sqlite_version()").Scan(&version) == nil {
		return txn.SQLite, nil
	}
	return "", err
}

// fileOf is the file of a SQLite database, "" for one in memory.
func fileOf(ctx context.Context, db *sql.DB) (path string, err error) {
	rows, err := db.QueryContext(ctx, "PRAGMA database_list")
	if err != nil {
		return "", err
	}
	defer rows.Close()
	for rows.Next() {
		var (
			seq  int
			name string
			file sql.NullString
		)
		if err := rows.Scan(&seq, &name, &file); err != nil {
			return "", err
		}
		if name == "main" {
			path = file.String
		}
	}
	return path, rows.Err()
}

// enter waits for the turn of a SQLite writer.
func (p *sqlPool) enter(ctx context.Context) (leave func(), err error) {
	if d, err := p.Dialect(ctx); err != nil || d != txn.SQLite {
		return func() {}, err
	}
	if t, open := txn.From(ctx, p); open && t.Err() == nil && !t.ReadOnly() {
		return nil, fmt.Errorf("%w: a write beside it would wait for it", ErrTransactionOpen)
	}
	return p.gate.Acquire(ctx)
}

func (p *sqlPool) Exec(ctx context.Context, query string, args ...any) (n int64, err error) {
	leave, err := p.enter(ctx)
	if err != nil {
		return 0, err
	}
	defer leave()
	err = retryBusy(ctx, func() error { n, err = exec(ctx, p.db, query, args); return err })
	return n, err
}

func (p *sqlPool) Query(ctx context.Context, query string, args []any, row func(txn.Scanner) error) error {
	if txn.Writes(query) {
		leave, err := p.enter(ctx)
		if err != nil {
			return err
		}
		defer leave()
	}
	return queryRows(ctx, p.db, query, args, row)
}

// lacksAnother tells whether all connections are taken and resolution may need one.
func (p *sqlPool) lacksAnother() bool {
	if p.settings.ResolveTimeout == 0 {
		return false
	}
	s := p.db.Stats()
	return s.MaxOpenConnections > 0 && s.InUse >= s.MaxOpenConnections
}

// Begin implements txn.Beginner.
func (p *sqlPool) Begin(ctx context.Context, o txn.Options) (txn.Conn, error) {
	dialect, err := p.Dialect(ctx)
	if err != nil {
		return nil, err
	}
	c := &sqlConn{pool: p, dialect: dialect, heeds: p.heeds, readOnly: o.ReadOnly}
	if dialect == txn.SQLite && !o.ReadOnly {
		if c.leave, err = p.enter(ctx); err != nil {
			return nil, fmt.Errorf("millrace: begin: %w", err)
		}
	}
	if err := c.begin(ctx, p, o); err != nil {
		c.end()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("millrace: begin: %w", err)
	}
	return c, nil
}

type execer interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

type queryer interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

func exec(ctx context.Context, db execer, query string, args []any) (int64, error) {
	res, err := db.ExecContext(ctx, query, args...)
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}

func queryRows(ctx context.Context, db queryer, query string, args []any, row func(txn.Scanner) error) error {
	rows, err := db.QueryContext(ctx, query, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := row(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

// busyWait is how long a writer that holds the gate waits for one that does not know of the gate.
const busyWait = 5 * time.Second

// retryBusy repeats op while SQLite is busy with a writer that does not pass the gate.
func retryBusy(ctx context.Context, op func() error) error {
	deadline := time.Now().Add(busyWait)
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		err := op()
		if !dberr.Busy(err) || time.Now().After(deadline) {
			return err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
