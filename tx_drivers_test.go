package millrace_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	_ "github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	_ "github.com/jackc/pgx/v5/stdlib"
	_ "github.com/lib/pq"
	"github.com/stretchr/testify/require"
	_ "modernc.org/sqlite"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/internal/txn"
	"github.com/millrace-go/millrace/pgxtx"
)

// handle is what the scenarios use of *millrace.Tx and of a guarded pgx.Tx alike.
type handle interface {
	Exec(ctx context.Context, query string) error
	// Count runs a query of one number.
	Count(ctx context.Context, query string) (int, error)
	// Raw runs a statement on the driver's own transaction.
	Raw(ctx context.Context, query string) error
}

// env is one database through one driver.
type env struct {
	driver string
	dsn    string
	db     millrace.DB
	pool   *sql.DB // not for pgx
	native *pgxpool.Pool
	begin  func(ctx context.Context, fn func(ctx context.Context, tx handle) error, opts ...millrace.TxOption) error
	admin  *sql.DB // past millrace
	inUse  func() int

	mu     sync.Mutex
	failed []millrace.HookError
}

// InTx is millrace.InTx without the type of the handle.
func (e *env) InTx(ctx context.Context, fn func(ctx context.Context, tx handle) error, opts ...millrace.TxOption) error {
	return e.begin(ctx, fn, opts...)
}

// reset empties the table. On MySQL it leaves no deleted rows that are yet to be purged, and so no locks on them and on the gaps
// between, which a RequiresNew could wait for in vain while the transaction around it holds them.
func (e *env) reset(t *testing.T) {
	empty := "DELETE FROM notes"
	if e.driver == "mysql" {
		empty = "TRUNCATE TABLE notes"
	}
	_, err := e.admin.ExecContext(t.Context(), empty)
	require.NoError(t, err)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.failed = nil
}

func (e *env) hookErrors() []millrace.HookError {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.failed
}

// notes lists what was committed.
func (e *env) notes(t *testing.T) string {
	rows, err := e.admin.QueryContext(t.Context(), "SELECT note FROM notes ORDER BY note")
	require.NoError(t, err)
	defer rows.Close()
	var all []string
	for rows.Next() {
		var s string
		require.NoError(t, rows.Scan(&s))
		all = append(all, s)
	}
	require.NoError(t, rows.Err())
	return strings.Join(all, " ")
}

func note(ctx context.Context, tx handle, s string) error {
	return tx.Exec(ctx, "INSERT INTO notes (note) VALUES ('"+s+"')")
}

const schema = "CREATE TABLE notes (note VARCHAR(100) PRIMARY KEY)"

// drivers are the ways to a database that InTx promises the same for.
var drivers = []string{"pgx", "pgx-stdlib", "pq", "mysql", "sqlite"}

func newEnv(t *testing.T, driver string, cfg millrace.Config) *env {
	t.Helper()
	switch driver {
	case "pgx", "pgx-stdlib", "pq":
		return envOf(t, driver, testenv.Postgres(t), cfg)
	case "mysql":
		return envOf(t, driver, testenv.MariaDB(t), cfg)
	default:
		return envOf(t, driver, testenv.SQLite(t), cfg)
	}
}

// envOf makes the schema in the database of dsn.
func envOf(t *testing.T, driver, dsn string, cfg millrace.Config) *env {
	t.Helper()
	if driver == "sqlite" {
		dsn = "file:" + dsn + "?_pragma=journal_mode(WAL)&_pragma=busy_timeout(2000)"
	}
	e := dial(t, driver, dsn, cfg)
	e.admin = open(t, driverNames[driver], dsn)
	_, err := e.admin.ExecContext(t.Context(), schema)
	require.NoError(t, err)
	return e
}

var driverNames = map[string]string{"pgx": "pgx", "pgx-stdlib": "pgx", "pq": "postgres", "mysql": "mysql", "sqlite": "sqlite"}

// dial makes the env of dsn, without an admin.
func dial(t *testing.T, driver, dsn string, cfg millrace.Config) *env {
	t.Helper()
	e := &env{driver: driver, dsn: dsn}
	cfg = e.reported(cfg)
	if driver == "pgx" {
		pool, err := pgxpool.New(t.Context(), dsn)
		require.NoError(t, err)
		t.Cleanup(pool.Close)
		e.usePgx(pgxtx.Pool(pool, cfg), pool)
		return e
	}
	pool := open(t, driverNames[driver], dsn)
	e.use(pool, cfg)
	return e
}

// reported has e hear of hooks that fail. Where the time of a hook is not the subject, it has plenty: a busy machine
// must not make it an overrun.
func (e *env) reported(cfg millrace.Config) millrace.Config {
	if cfg.HookTimeout == 0 {
		cfg.HookTimeout, cfg.HooksTimeout = 5*time.Minute, 5*time.Minute
	}
	report := cfg.OnHookError
	cfg.OnHookError = func(h millrace.HookError) {
		e.mu.Lock()
		e.failed = append(e.failed, h)
		e.mu.Unlock()
		if report != nil {
			report(h)
		}
	}
	return cfg
}

// sqlEnv is an env of a *sql.DB.
func sqlEnv(db *sql.DB) *env {
	e := &env{admin: db}
	e.use(db, millrace.Config{})
	return e
}

func (e *env) use(pool *sql.DB, cfg millrace.Config) {
	db := millrace.SQL(pool, cfg)
	e.db, e.pool = db, pool
	e.inUse = func() int { return pool.Stats().InUse }
	e.begin = func(ctx context.Context, fn func(context.Context, handle) error, opts ...millrace.TxOption) error {
		return millrace.InTx(ctx, db, func(ctx context.Context, tx *millrace.Tx) error { return fn(ctx, sqlHandle{tx}) }, opts...)
	}
}

func (e *env) usePgx(db *pgxtx.DB, pool *pgxpool.Pool) {
	e.db, e.native = db, pool
	e.inUse = func() int { return int(pool.Stat().AcquiredConns()) }
	e.begin = func(ctx context.Context, fn func(context.Context, handle) error, opts ...millrace.TxOption) error {
		return millrace.InTx(ctx, db, func(ctx context.Context, tx pgx.Tx) error { return fn(ctx, pgxHandle{tx}) }, opts...)
	}
}

func openDB(name, dsn string) *sql.DB {
	db, err := sql.Open(name, dsn)
	if err != nil {
		panic(err)
	}
	return db
}

func open(t *testing.T, name, dsn string) *sql.DB {
	db := openDB(name, dsn)
	t.Cleanup(func() { _ = db.Close() })
	return db
}

type sqlHandle struct{ tx *millrace.Tx }

func (h sqlHandle) Exec(ctx context.Context, query string) error {
	_, err := h.tx.ExecContext(ctx, query)
	return err
}

func (h sqlHandle) Count(ctx context.Context, query string) (n int, err error) {
	return n, h.tx.QueryRowContext(ctx, query).Scan(&n)
}

func (h sqlHandle) Raw(ctx context.Context, query string) error {
	_, err := h.tx.Unwrap().ExecContext(ctx, query)
	return err
}

type pgxHandle struct{ tx pgx.Tx }

func (h pgxHandle) Exec(ctx context.Context, query string) error {
	_, err := h.tx.Exec(ctx, query)
	return err
}

func (h pgxHandle) Count(ctx context.Context, query string) (n int, err error) {
	return n, h.tx.QueryRow(ctx, query).Scan(&n)
}

func (h pgxHandle) Raw(ctx context.Context, query string) error {
	_, err := h.tx.Conn().Exec(ctx, query)
	return err
}

// buffer is a participant like the outbox: what is put in it is inserted by the flush.
type buffer struct{ notes []string }

func (b *buffer) Flush(context.Context) ([]txn.Statement, error) {
	var stmts []txn.Statement
	for _, s := range b.notes {
		stmts = append(stmts, txn.Statement{SQL: "INSERT INTO notes (note) VALUES ('" + s + "')"})
	}
	b.notes = nil
	return stmts, nil
}

var errNotBuffered = errors.New("no transaction to publish in")

// publish does what an outbox does.
func publish(ctx context.Context, db millrace.DB, s string) error {
	t, ok := txn.From(ctx, db.TxnPool())
	if !ok {
		return errNotBuffered
	}
	v, err := t.Attach("buffer", func() any { return &buffer{} })
	if err != nil {
		return err
	}
	b := v.(*buffer)
	b.notes = append(b.notes, s)
	if t.Buffering() {
		return nil
	}
	return t.FlushNow(ctx)
}

// journal writes down what ran, in order.
type journal struct {
	mu    sync.Mutex
	lines []string
}

func (j *journal) add(format string, args ...any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, fmt.Sprintf(format, args...))
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return strings.Join(j.lines, ", ")
}

// hook returns a hook that writes s down.
func (j *journal) hook(s string) func(context.Context) error {
	return func(context.Context) error { j.add("%s", s); return nil }
}

// all registers a hook of each phase.
func (j *journal) all(ctx context.Context, prefix string) error {
	return errors.Join(
		millrace.AfterCompletion(ctx, func(_ context.Context, o millrace.Outcome) error { j.add("%sdone:%v", prefix, o); return nil }),
		millrace.AfterRollback(ctx, j.hook(prefix+"rolledback")),
		millrace.AfterCommit(ctx, j.hook(prefix+"committed")),
		millrace.BeforeCommit(ctx, j.hook(prefix+"before")),
	)
}
