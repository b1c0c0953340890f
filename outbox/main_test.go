package outbox_test

import (
	"context"
	"database/sql"
	"testing"

	_ "github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5/pgxpool"
	_ "github.com/jackc/pgx/v5/stdlib"
	_ "github.com/lib/pq"
	"github.com/stretchr/testify/require"
	_ "modernc.org/sqlite"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/outbox"
	"github.com/millrace-go/millrace/pgxtx"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// backend is a database and the way in which it is reached.
type backend struct {
	name   string
	driver string
	native bool // by a pgxpool
	source func(t testing.TB) string
}

var (
	postgres     = backend{name: "postgres by pgx", driver: "pgx", source: testenv.Postgres}
	postgresPool = backend{name: "postgres by pgxpool", driver: "pgx", native: true, source: testenv.Postgres}
	postgresPq   = backend{name: "postgres by pq", driver: "postgres", source: testenv.Postgres}
	mariadb      = backend{name: "mariadb", driver: "mysql", source: testenv.MariaDB}
	sqlite       = backend{name: "sqlite", driver: "sqlite", source: func(t testing.TB) string {
		return "file:" + testenv.SQLite(t) + "?_pragma=journal_mode(wal)&_pragma=busy_timeout(5000)"
	}}
	backends = []backend{postgres, postgresPool, postgresPq, sqlite, mariadb}
)

// each runs a test on every backend.
func each(t *testing.T, test func(b *bench)) {
	for _, b := range backends {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			test(open(t, b, outbox.Config{}))
		})
	}
}

// bench is one empty, migrated outbox, and a connection of its own beside it.
type bench struct {
	*testing.T
	backend
	url  string
	raw  *sql.DB
	db   millrace.DB
	box  *outbox.Box
	inTx func(ctx context.Context, fn func(ctx context.Context) error, opts ...millrace.TxOption) error
}

func open(t *testing.T, b backend, cfg outbox.Config) *bench {
	t.Helper()
	o := connect(t, b, b.source(t), cfg)
	require.NoError(t, o.box.Migrate(t.Context()))
	return o
}

// connect opens an outbox in a database that is there.
func connect(t *testing.T, b backend, url string, cfg outbox.Config) *bench {
	t.Helper()
	raw, err := sql.Open(b.driver, url)
	require.NoError(t, err)
	t.Cleanup(func() { _ = raw.Close() })
	o := &bench{T: t, backend: b, url: url, raw: raw}
	if b.native {
		pool, err := pgxpool.New(t.Context(), url)
		require.NoError(t, err)
		t.Cleanup(pool.Close)
		db := pgxtx.Pool(pool)
		o.db, o.inTx = db, within(db)
	} else {
		db := millrace.SQL(raw)
		o.db, o.inTx = db, within(db)
	}
	o.box, err = outbox.New(o.db, cfg)
	require.NoError(t, err)
	return o
}

func within[T any](db millrace.TxDB[T]) func(context.Context, func(context.Context) error, ...millrace.TxOption) error {
	return func(ctx context.Context, fn func(context.Context) error, opts ...millrace.TxOption) error {
		return millrace.InTx(ctx, db, func(ctx context.Context, _ T) error { return fn(ctx) }, opts...)
	}
}

func (b *bench) exec(query string, args ...any) {
	b.Helper()
	_, err := b.raw.ExecContext(b.Context(), query, args...)
	require.NoError(b, err)
}

func (b *bench) one(query string, args ...any) (n int64) {
	b.Helper()
	require.NoError(b, b.raw.QueryRowContext(b.Context(), query, args...).Scan(&n))
	return n
}

func (b *bench) count() int { return int(b.one(`SELECT count(*) FROM millrace_outbox`)) }

// read returns all that waits for a topic.
func (b *bench) read(topic string) []outbox.Row {
	b.Helper()
	lanes := make([]int, outbox.Lanes)
	for i := range lanes {
		lanes[i] = i
	}
	rows, err := b.box.Store().Read(b.Context(), outbox.Read{Lanes: lanes, Topics: []string{topic}, MaxRows: 10000, MaxBytes: 100 << 20})
	require.NoError(b, err)
	return rows
}
