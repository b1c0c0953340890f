// Package pgxtx runs millrace's transactions on native pgx: millrace.InTx with pgxtx.Pool(pool) gives
// fn a pgx.Tx. Hooks, outbox and inbox work as on database/sql; what the outbox has buffered travels
// in the same round trip as COMMIT, and BEGIN in that of the first statement, if it has values or is a query: now() is
// the time of that statement, and a server that is gone shows there.
package pgxtx

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/internal/txn"
)

// DB is a *pgxpool.Pool on which millrace.InTx begins transactions. Safe for concurrent use.
type DB struct{ pool *pool }

var _ millrace.TxDB[pgx.Tx] = (*DB)(nil)

// Pool makes p usable with millrace.InTx. It opens and starts nothing, and never closes p. The
// transaction in a context is found by p, not by this wrapper. A nil pool and a negative duration
// panic; at most one Config is given.
func Pool(p *pgxpool.Pool, cfg ...millrace.Config) *DB {
	if p == nil || len(cfg) > 1 {
		panic("pgxtx: Pool wants a *pgxpool.Pool and at most one Config")
	}
	var c millrace.Config
	if len(cfg) == 1 {
		c = cfg[0]
	}
	s, err := c.TxnSettings()
	if err != nil {
		panic(err.Error())
	}
	return &DB{&pool{p, s, p.Config().ConnConfig.DefaultQueryExecMode}}
}

// Close waits until the Async hooks have ended, or for ctx; then it returns an error that says how many
// have not. Hooks that become due later run in their caller's goroutine. Everything else goes on: Close
// does not close the pool. It may be called more than once, and need not be without Async hooks.
func (d *DB) Close(ctx context.Context) error { return d.pool.settings.Async.Close(ctx) }

// TxnPool is for millrace's own packages.
func (d *DB) TxnPool() txn.Pool { return d.pool }

// TxnBeginner is for millrace's own packages.
func (d *DB) TxnBeginner() txn.Beginner { return d.pool }

// Handle is for millrace's own packages.
func (d *DB) Handle(t *txn.Tx) pgx.Tx {
	if t == nil {
		return none{d.pool.Pool}
	}
	return &handle{t: t, c: t.Conn().(*conn)}
}

// pool is a *pgxpool.Pool as the state machine sees it.
type pool struct {
	*pgxpool.Pool
	settings *txn.Settings
	mode     pgx.QueryExecMode
}

func (p *pool) Identity() any                                { return p.Pool }
func (p *pool) Settings() *txn.Settings                      { return p.settings }
func (p *pool) Dialect(context.Context) (txn.Dialect, error) { return txn.Postgres, nil }

// Single implements txn.Beginner.
func (p *pool) Single() bool { return p.Stat().MaxConns() == 1 }

func (p *pool) Exec(ctx context.Context, query string, args ...any) (int64, error) {
	tag, err := p.Pool.Exec(ctx, query, p.once(ctx, args)...)
	return tag.RowsAffected(), err
}

func (p *pool) Query(ctx context.Context, query string, args []any, row func(txn.Scanner) error) error {
	rows, err := p.Pool.Query(ctx, query, p.once(ctx, args)...)
	return each(rows, err, row)
}

// once has a statement that hardly comes again sent without being prepared: one round trip instead of two.
func (p *pool) once(ctx context.Context, args []any) []any {
	prepares := p.mode == pgx.QueryExecModeCacheStatement || p.mode == pgx.QueryExecModeCacheDescribe
	if !prepares || !txn.IsOnce(ctx) {
		return args
	}
	return append([]any{pgx.QueryExecModeExec}, args...)
}

// Begin implements txn.Beginner. BEGIN is sent with the first statement. The first transaction on a connection is begun
// at once: it gets the session ready.
func (p *pool) Begin(ctx context.Context, o txn.Options) (txn.Conn, error) {
	text, err := beginText(o)
	if err != nil {
		return nil, err
	}
	pooled, err := p.Acquire(ctx)
	if err != nil {
		return nil, fmt.Errorf("pgxtx: begin: %w", err)
	}
	c := &conn{pooled: pooled, Conn: pooled.Conn(), session: sessionOf(pooled.Conn()), text: text}
	if c.tx == nil {
		if err := c.begin(ctx); err != nil {
			pooled.Release()
			return nil, err
		}
	}
	return c, nil
}

func beginText(o txn.Options) (string, error) {
	text := "begin"
	switch o.Isolation {
	case sql.LevelDefault:
	case sql.LevelReadUncommitted:
		text += " isolation level read uncommitted"
	case sql.LevelReadCommitted:
		text += " isolation level read committed"
	case sql.LevelRepeatableRead, sql.LevelSnapshot:
		text += " isolation level repeatable read"
	case sql.LevelSerializable:
		text += " isolation level serializable"
	default:
		return "", fmt.Errorf("%w: isolation level %v", millrace.ErrUnsupported, o.Isolation)
	}
	if o.ReadOnly {
		text += " read only"
	}
	return text, nil
}

// each calls row for each of rows, which it closes.
func each(rows pgx.Rows, err error, row func(txn.Scanner) error) error {
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
