package dedup_test

import (
	"context"
	"database/sql"
	"fmt"
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
	"github.com/millrace-go/millrace/dedup"
	"github.com/millrace-go/millrace/dedup/deduptest"
	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/pgxtx"
)

func openSQL(t testing.TB, driver, dsn string) *sql.DB {
	t.Helper()
	db, err := sql.Open(driver, dsn)
	require.NoError(t, err)
	db.SetMaxOpenConns(30)
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func sqliteDSN(t testing.TB) string {
	return "file:" + testenv.SQLite(t) + "?_pragma=journal_mode(wal)&_pragma=busy_timeout(5000)"
}

var databases = map[string]func(t testing.TB) *sql.DB{
	"postgres by pgx": func(t testing.TB) *sql.DB { return openSQL(t, "pgx", testenv.Postgres(t)) },
	"postgres by pq":  func(t testing.TB) *sql.DB { return openSQL(t, "postgres", testenv.Postgres(t)) },
	"mariadb":         func(t testing.TB) *sql.DB { return openSQL(t, "mysql", testenv.MariaDB(t)) },
	"mariadb that counts matched rows": func(t testing.TB) *sql.DB {
		return openSQL(t, "mysql", testenv.MariaDB(t)+"&clientFoundRows=true")
	},
	"sqlite": func(t testing.TB) *sql.DB { return openSQL(t, "sqlite", sqliteDSN(t)) },
}

func newInbox(t testing.TB, db millrace.DB, cfg dedup.InboxConfig) *dedup.SQLInbox {
	t.Helper()
	box, err := dedup.NewInbox(db, cfg)
	require.NoError(t, err)
	require.ErrorIs(t, box.Check(t.Context()), dedup.ErrNoTable)
	require.NoError(t, millrace.Migrate(t.Context(), db, dedup.Migrations()))
	require.NoError(t, box.Check(t.Context()))
	return box
}

func TestInboxKeepsTheRulesOfAnInbox(t *testing.T) {
	t.Parallel()
	for name, open := range databases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := millrace.SQL(open(t))
			box := newInbox(t, db, dedup.InboxConfig{})
			deduptest.TestInbox(t, func(testing.TB) deduptest.Inbox {
				return deduptest.Inbox{Inbox: box, InTx: func(ctx context.Context, fn func(context.Context) error) error {
					return millrace.InTx(ctx, db, func(ctx context.Context, _ *millrace.Tx) error { return fn(ctx) })
				}}
			})
		})
	}
	t.Run("postgres by pgxpool", func(t *testing.T) {
		t.Parallel()
		pool, err := pgxpool.New(t.Context(), testenv.Postgres(t))
		require.NoError(t, err)
		t.Cleanup(pool.Close)
		db := pgxtx.Pool(pool)
		box := newInbox(t, db, dedup.InboxConfig{})
		deduptest.TestInbox(t, func(testing.TB) deduptest.Inbox {
			return deduptest.Inbox{Inbox: box, InTx: func(ctx context.Context, fn func(context.Context) error) error {
				return millrace.InTx(ctx, db, func(ctx context.Context, _ pgx.Tx) error { return fn(ctx) })
			}}
		})
	})
}

func TestTheInboxForgetsWhatIsOldAndNothingElse(t *testing.T) {
	t.Parallel()
	for name, open := range databases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			raw := open(t)
			db := millrace.SQL(raw)
			box := newInbox(t, db, dedup.InboxConfig{Keep: time.Hour})
			const n = 2500
			require.NoError(t, millrace.InTx(t.Context(), db, func(ctx context.Context, _ *millrace.Tx) error {
				for i := range n {
					if _, err := box.Seen(ctx, dedup.Key{Consumer: "c", MessageID: fmt.Sprint(i)}); err != nil {
						return err
					}
				}
				return nil
			}))
			forgotten, err := box.Purge(t.Context())
			require.NoError(t, err)
			require.Zero(t, forgotten)
			age := map[string]string{
				"sqlite":                           `UPDATE millrace_inbox SET processed_at = processed_at - 3700 WHERE message_id <> '7'`,
				"mariadb":                          `UPDATE millrace_inbox SET processed_at = processed_at - INTERVAL 3700 SECOND WHERE message_id <> '7'`,
				"mariadb that counts matched rows": `UPDATE millrace_inbox SET processed_at = processed_at - INTERVAL 3700 SECOND WHERE message_id <> '7'`,
			}[name]
			if age == "" {
				age = `UPDATE millrace_inbox SET processed_at = processed_at - interval '3700 seconds' WHERE message_id <> '7'`
			}
			_, err = raw.ExecContext(t.Context(), age)
			require.NoError(t, err)

			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- box.Run(ctx) }()
			testenv.Eventually(t, time.Minute, "purged", func() bool {
				left := 0
				require.NoError(t, raw.QueryRowContext(t.Context(), `SELECT count(*) FROM millrace_inbox`).Scan(&left))
				return left == 1
			})
			cancel()
			require.NoError(t, <-ended)
		})
	}
}

func TestAnInboxWithoutItsTableSaysWhatToDo(t *testing.T) {
	t.Parallel()
	db := millrace.SQL(openSQL(t, "sqlite", sqliteDSN(t)))
	box, err := dedup.NewInbox(db, dedup.InboxConfig{})
	require.NoError(t, err)
	require.ErrorIs(t, box.Run(t.Context()), dedup.ErrNoTable)
	require.ErrorContains(t, box.Check(t.Context()), "millrace.Migrate")
	_, err = dedup.NewInbox(nil, dedup.InboxConfig{Keep: -1, PurgeEvery: -1})
	for _, part := range []string{"without a database", "Keep", "PurgeEvery"} {
		require.ErrorContains(t, err, part)
	}
}
