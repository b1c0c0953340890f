package txn_test

import (
	"context"
	"database/sql"
	"testing"
	"time"

	_ "github.com/go-sql-driver/mysql"
	"github.com/google/uuid"
	_ "github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"
	_ "modernc.org/sqlite"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/internal/txn"
)

func TestMain(m *testing.M) { testenv.Main(m) }

var databases = map[txn.Dialect]func(t *testing.T) (driver, dsn string){
	txn.Postgres: func(t *testing.T) (string, string) { return "pgx", testenv.Postgres(t) },
	txn.MySQL:    func(t *testing.T) (string, string) { return "mysql", testenv.MariaDB(t) },
	txn.SQLite: func(t *testing.T) (string, string) {
		return "sqlite", "file:" + testenv.SQLite(t) + "?_pragma=journal_mode(WAL)&_pragma=busy_timeout(100)"
	},
}

func eachDatabase(t *testing.T, run func(t *testing.T, d txn.Dialect, raw *sql.DB, p txn.Beginner)) {
	for dialect, open := range databases {
		t.Run(string(dialect), func(t *testing.T) {
			t.Parallel()
			raw, err := sql.Open(open(t))
			require.NoError(t, err)
			t.Cleanup(func() { _ = raw.Close() })
			db := millrace.SQL(raw)
			require.NoError(t, millrace.Migrate(t.Context(), db, millrace.WitnessMigrations()))
			run(t, dialect, raw, db.TxnBeginner())
		})
	}
}

func TestAWitnessAndATombstoneExcludeEachOther(t *testing.T) {
	eachDatabase(t, func(t *testing.T, d txn.Dialect, raw *sql.DB, p txn.Beginner) {
		id := uuid.NewString()
		for range 2 {
			outcome, err := txn.Bury(t.Context(), p, d, id, time.Now())
			require.NoError(t, err)
			require.Equal(t, txn.RolledBack, outcome)
		}
		_, err := raw.ExecContext(t.Context(), txn.WriteWitness(d), id)
		require.Error(t, err, "a transaction that was buried must not commit")

		id = uuid.NewString()
		_, err = raw.ExecContext(t.Context(), txn.WriteWitness(d), id)
		require.NoError(t, err)
		for range 2 {
			outcome, err := txn.Bury(t.Context(), p, d, id, time.Now())
			require.NoError(t, err)
			require.Equal(t, txn.Committed, outcome)
		}
	})
}

func TestATransactionThatIsOpenIsNotBuried(t *testing.T) {
	eachDatabase(t, func(t *testing.T, d txn.Dialect, raw *sql.DB, p txn.Beginner) {
		for _, commits := range []bool{true, false} {
			id := uuid.NewString()
			tx, err := raw.BeginTx(t.Context(), nil)
			require.NoError(t, err)
			_, err = tx.Exec(txn.WriteWitness(d), id)
			require.NoError(t, err)

			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			_, err = txn.Bury(ctx, p, d, id, time.Now())
			require.Error(t, err)

			want := txn.RolledBack
			if commits {
				want = txn.Committed
				require.NoError(t, tx.Commit())
			} else {
				require.NoError(t, tx.Rollback())
			}
			outcome, err := txn.Bury(t.Context(), p, d, id, time.Now())
			require.NoError(t, err)
			require.Equal(t, want, outcome)
		}
	})
}

func TestAWitnessThatMayHaveBeenPurgedProvesNothing(t *testing.T) {
	eachDatabase(t, func(t *testing.T, d txn.Dialect, raw *sql.DB, p txn.Beginner) {
		early := time.Now().Add(-txn.WitnessLife)
		id := uuid.NewString()
		outcome, err := txn.Bury(t.Context(), p, d, id, early)
		require.NoError(t, err)
		require.Equal(t, txn.Unknown, outcome)

		id = uuid.NewString()
		_, err = raw.ExecContext(t.Context(), txn.WriteWitness(d), id)
		require.NoError(t, err)
		outcome, err = txn.Bury(t.Context(), p, d, id, early)
		require.NoError(t, err)
		require.Equal(t, txn.Committed, outcome)
	})
}

func TestPurgeDeletesTheOldAndKeepsTheYoung(t *testing.T) {
	age := map[txn.Dialect]string{
		txn.Postgres: "UPDATE millrace_witness SET created_at = created_at - interval '2 hours'",
		txn.MySQL:    "UPDATE millrace_witness SET created_at = created_at - INTERVAL 2 HOUR",
		txn.SQLite:   "UPDATE millrace_witness SET created_at = created_at - 7200",
	}
	eachDatabase(t, func(t *testing.T, d txn.Dialect, raw *sql.DB, p txn.Beginner) {
		old, young := uuid.NewString(), uuid.NewString()
		_, err := raw.ExecContext(t.Context(), txn.WriteWitness(d), old)
		require.NoError(t, err)
		_, err = raw.ExecContext(t.Context(), age[d])
		require.NoError(t, err)
		_, err = raw.ExecContext(t.Context(), txn.WriteWitness(d), young)
		require.NoError(t, err)

		_, err = txn.PurgeWitnesses(t.Context(), p, time.Minute)
		require.ErrorContains(t, err, "1h")
		n, err := txn.PurgeWitnesses(t.Context(), p, time.Hour)
		require.NoError(t, err)
		require.Equal(t, int64(1), n)
		outcome, err := txn.Bury(t.Context(), p, d, young, time.Now())
		require.NoError(t, err)
		require.Equal(t, txn.Committed, outcome)
	})
}
