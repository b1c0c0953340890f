package sqlstore_test

import (
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
	"github.com/millrace-go/millrace/pgxtx"
	"github.com/millrace-go/millrace/store"
	"github.com/millrace-go/millrace/store/sqlstore"
	"github.com/millrace-go/millrace/store/storetest"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func open(t testing.TB, driver, dsn string) *millrace.SQLDB {
	t.Helper()
	db, err := sql.Open(driver, dsn)
	require.NoError(t, err)
	db.SetMaxOpenConns(20)
	db.SetMaxIdleConns(20)
	t.Cleanup(func() { _ = db.Close() })
	return millrace.SQL(db)
}

var databases = map[string]func(t testing.TB) millrace.DB{
	"postgres by pgx": func(t testing.TB) millrace.DB { return open(t, "pgx", testenv.Postgres(t)) },
	"postgres by pq":  func(t testing.TB) millrace.DB { return open(t, "postgres", testenv.Postgres(t)) },
	"postgres by pgxpool": func(t testing.TB) millrace.DB {
		pool, err := pgxpool.New(t.Context(), testenv.Postgres(t))
		require.NoError(t, err)
		t.Cleanup(pool.Close)
		return pgxtx.Pool(pool)
	},
	"mariadb": func(t testing.TB) millrace.DB { return open(t, "mysql", testenv.MariaDB(t)) },
	"mariadb that counts matched rows": func(t testing.TB) millrace.DB {
		return open(t, "mysql", testenv.MariaDB(t)+"&clientFoundRows=true")
	},
	"sqlite": func(t testing.TB) millrace.DB {
		return open(t, "sqlite", "file:"+testenv.SQLite(t)+"?_pragma=journal_mode(wal)&_pragma=busy_timeout(5000)")
	},
}

func newStore(t testing.TB, db millrace.DB) *sqlstore.Store {
	t.Helper()
	s, err := sqlstore.New(db)
	require.NoError(t, err)
	require.ErrorIs(t, s.Check(t.Context()), sqlstore.ErrNoTable)
	require.ErrorIs(t, s.Check(t.Context()), store.ErrSetup)
	require.NoError(t, millrace.Migrate(t.Context(), db, sqlstore.Migrations()))
	require.NoError(t, s.Check(t.Context()))
	return s
}

func TestStoreKeepsTheRulesOfAStore(t *testing.T) {
	t.Parallel()
	races := 100
	if testenv.Full() {
		races = 10_000
	}
	for name, db := range databases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStore(t, db(t))
			storetest.TestStore(t, func(testing.TB) store.Store { return s }, races)
		})
	}
}

func TestAStoreWithoutADatabaseIsRefused(t *testing.T) {
	t.Parallel()
	_, err := sqlstore.New(nil)
	require.ErrorContains(t, err, "no database")
}
