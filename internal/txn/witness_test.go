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

// postgres is a PostgreSQL with the table of witnesses.
func postgres(t *testing.T, url string) (raw *sql.DB, p txn.Beginner) {
	raw, err := sql.Open("pgx", url)
	require.NoError(t, err)
	t.Cleanup(func() { _ = raw.Close() })
	db := millrace.SQL(raw)
	require.NoError(t, millrace.Migrate(t.Context(), db, millrace.WitnessMigrations()))
	return raw, db.TxnBeginner()
}

// witnessed begins a transaction that has written its witness.
func witnessed(t *testing.T, raw *sql.DB) (tx *sql.Tx, id, xid string) {
	tx, err := raw.BeginTx(t.Context(), nil)
	require.NoError(t, err)
	id = uuid.NewString()
	require.NoError(t, tx.QueryRow(txn.WriteWitness(txn.Postgres), id).Scan(&xid))
	return tx, id, xid
}

func tombstones(t *testing.T, raw *sql.DB) (n int) {
	require.NoError(t, raw.QueryRow("SELECT COUNT(*) FROM millrace_witness WHERE kind = 'T'").Scan(&n))
	return n
}

func TestPostgreSQLTellsTheEndOfATransactionWithoutATombstone(t *testing.T) {
	t.Parallel()
	raw, p := postgres(t, testenv.Postgres(t))
	for want, end := range map[txn.Outcome]func(*sql.Tx) error{txn.Committed: (*sql.Tx).Commit, txn.RolledBack: (*sql.Tx).Rollback} {
		tx, id, xid := witnessed(t, raw)
		_, err := txn.Find(t.Context(), p, txn.Postgres, id, &xid)
		require.Error(t, err, "it is open")
		require.NoError(t, end(tx))
		outcome, err := txn.Find(t.Context(), p, txn.Postgres, id, &xid)
		require.NoError(t, err)
		require.Equal(t, want, outcome)
		require.Zero(t, tombstones(t, raw))
	}
}

// Numbers of transactions are given again after a failover or a restored backup, and forgotten after long.
func TestANumberThatProvesNothingIsLeftToTheTombstone(t *testing.T) {
	t.Parallel()
	raw, p := postgres(t, testenv.Postgres(t))
	var others string
	require.NoError(t, raw.QueryRow("SELECT pg_current_xact_id()::text").Scan(&others))
	for name, xid := range map[string]string{
		"committed by somebody else": others,
		"not given yet":              "4611686018427387904",
		"of long ago":                "3",
		"nonsense":                   "nonsense",
	} {
		before := tombstones(t, raw)
		id := uuid.NewString()
		outcome, err := txn.Find(t.Context(), p, txn.Postgres, id, &xid)
		require.NoError(t, err, name)
		require.Equal(t, txn.RolledBack, outcome, name)
		require.Equal(t, before+1, tombstones(t, raw), name)
		outcome, err = txn.Find(t.Context(), p, txn.Postgres, id, &xid)
		require.NoError(t, err, name)
		require.Equal(t, txn.RolledBack, outcome, "%s: and so it stays", name)
	}
}

func TestAServerInRecoveryTellsOnlyWhatIsFinal(t *testing.T) {
	t.Parallel()
	server := testenv.OwnPostgres(t)
	raw, _ := postgres(t, server.URL)
	tx, committed, committedXid := witnessed(t, raw)
	require.NoError(t, tx.Commit())
	tx, aborted, abortedXid := witnessed(t, raw)
	require.NoError(t, tx.Rollback())
	var folder string
	require.NoError(t, raw.QueryRow("SHOW data_directory").Scan(&folder))
	_, err := raw.Exec("COPY (SELECT 1 WHERE false) TO '" + folder + "/standby.signal'")
	require.NoError(t, err)
	server.Restart()

	raw, err = sql.Open("pgx", server.URL)
	require.NoError(t, err)
	defer raw.Close()
	p := millrace.SQL(raw).TxnBeginner()
	outcome, err := txn.Find(t.Context(), p, txn.Postgres, committed, &committedXid)
	require.NoError(t, err)
	require.Equal(t, txn.Committed, outcome, "what can be seen was committed")
	_, err = txn.Find(t.Context(), p, txn.Postgres, aborted, &abortedXid)
	require.Error(t, err, "the end of it may still be on its way")
}
