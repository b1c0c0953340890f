package pgxtx_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/pgxtx"
)

var errBusiness = errors.New("business says no")

func open(t *testing.T) (*pgxtx.DB, *pgxpool.Pool) {
	pool, err := pgxpool.New(t.Context(), testenv.Postgres(t))
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	_, err = pool.Exec(t.Context(), "CREATE TABLE notes (note TEXT PRIMARY KEY)")
	require.NoError(t, err)
	return pgxtx.Pool(pool), pool
}

func notes(t *testing.T, pool *pgxpool.Pool) string {
	rows, err := pool.Query(t.Context(), "SELECT note FROM notes ORDER BY note")
	require.NoError(t, err)
	all, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	return strings.Join(all, " ")
}

func write(ctx context.Context, tx pgx.Tx, note string) error {
	_, err := tx.Exec(ctx, "INSERT INTO notes VALUES ($1)", note)
	return err
}

// Whatever of pgx.Tx is used, the transaction is one.
func TestAllOfPgxTxWorksInside(t *testing.T) {
	t.Parallel()
	db, pool := open(t)
	var object uint32
	require.NoError(t, millrace.InTx(t.Context(), db, func(ctx context.Context, tx pgx.Tx) error {
		require.NoError(t, write(ctx, tx, "exec"))
		n, err := tx.CopyFrom(ctx, pgx.Identifier{"notes"}, []string{"note"}, pgx.CopyFromRows([][]any{{"copy1"}, {"copy2"}}))
		require.NoError(t, err)
		require.EqualValues(t, 2, n)
		_, err = tx.Prepare(ctx, "put", "INSERT INTO notes VALUES ($1)")
		require.NoError(t, err)
		_, err = tx.Exec(ctx, "put", "prepared")
		require.NoError(t, err)

		var b pgx.Batch
		b.Queue("INSERT INTO notes VALUES ('batch')")
		b.Queue("SELECT COUNT(*) FROM notes").QueryRow(func(row pgx.Row) error {
			var n int
			require.NoError(t, row.Scan(&n))
			require.Equal(t, 5, n)
			return nil
		})
		require.NoError(t, tx.SendBatch(ctx, &b).Close())

		rows, err := tx.Query(ctx, "SELECT note FROM notes ORDER BY note LIMIT 1")
		require.NoError(t, err)
		first, err := pgx.CollectOneRow(rows, pgx.RowTo[string])
		require.NoError(t, err)
		require.Equal(t, "batch", first)
		var one int
		require.NoError(t, tx.QueryRow(ctx, "SELECT 1").Scan(&one))

		objects := tx.LargeObjects()
		object, err = objects.Create(ctx, 0)
		require.NoError(t, err)
		o, err := objects.Open(ctx, object, pgx.LargeObjectModeWrite)
		require.NoError(t, err)
		_, err = io.WriteString(o, "large")
		require.NoError(t, err)
		return tx.Conn().Ping(ctx)
	}))
	require.Equal(t, "batch copy1 copy2 exec prepared", notes(t, pool))
	var text string
	require.NoError(t, pool.QueryRow(t.Context(), "SELECT convert_from(lo_get($1), 'UTF8')", object).Scan(&text))
	require.Equal(t, "large", text)
	require.Zero(t, pool.Stat().AcquiredConns())
}

func TestTheEndOfTheTransactionIsInTxsOwn(t *testing.T) {
	t.Parallel()
	db, pool := open(t)
	err := millrace.InTx(t.Context(), db, func(ctx context.Context, tx pgx.Tx) error {
		require.NoError(t, write(ctx, tx, "a"))
		require.ErrorIs(t, tx.Commit(ctx), millrace.ErrTxControl)
		return nil
	})
	require.NoError(t, err, "a refused Commit has done nothing")
	require.Equal(t, "a", notes(t, pool))

	err = millrace.InTx(t.Context(), db, func(ctx context.Context, tx pgx.Tx) error {
		require.NoError(t, write(ctx, tx, "b"))
		require.ErrorIs(t, tx.Rollback(ctx), millrace.ErrTxControl)
		return nil
	})
	require.ErrorIs(t, err, millrace.ErrUnexpectedRollback, "who called Rollback does not want this to commit")
	require.Equal(t, "a", notes(t, pool))
}

func TestTextThatWouldEndTheTransactionIsRefusedWhereverItStands(t *testing.T) {
	t.Parallel()
	db, pool := open(t)
	require.NoError(t, millrace.InTx(t.Context(), db, func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Exec(ctx, "COMMIT")
		require.ErrorIs(t, err, millrace.ErrTxControl)
		rows, err := tx.Query(ctx, "COMMIT")
		require.ErrorIs(t, err, millrace.ErrTxControl)
		require.ErrorIs(t, rows.Err(), millrace.ErrTxControl)
		require.ErrorIs(t, rows.Scan(), millrace.ErrTxControl)
		require.False(t, rows.Next())
		rows.Close()
		require.ErrorIs(t, tx.QueryRow(ctx, "COMMIT").Scan(), millrace.ErrTxControl)
		_, err = tx.Prepare(ctx, "end", "COMMIT")
		require.ErrorIs(t, err, millrace.ErrTxControl)

		var b pgx.Batch
		b.Queue("INSERT INTO notes VALUES ('ghost')")
		b.Queue("COMMIT")
		results := tx.SendBatch(ctx, &b)
		_, err = results.Exec()
		require.ErrorIs(t, err, millrace.ErrTxControl)
		_, err = results.Query()
		require.ErrorIs(t, err, millrace.ErrTxControl)
		require.ErrorIs(t, results.QueryRow().Scan(), millrace.ErrTxControl)
		require.ErrorIs(t, results.Close(), millrace.ErrTxControl)
		return write(ctx, tx, "a")
	}))
	require.Equal(t, "a", notes(t, pool))
}

func TestHooksFollowTheSavepointsOfPgx(t *testing.T) {
	t.Parallel()
	db, pool := open(t)
	var ran []string
	say := func(what string) func(context.Context) error {
		return func(context.Context) error { ran = append(ran, what); return nil }
	}
	require.NoError(t, millrace.InTx(t.Context(), db, func(ctx context.Context, tx pgx.Tx) error {
		require.NoError(t, millrace.AfterCommit(ctx, say("outer")))
		require.Equal(t, errBusiness, pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error {
			require.NoError(t, write(ctx, tx, "gone"))
			require.NoError(t, millrace.AfterCommit(ctx, say("gone")))
			require.NoError(t, millrace.AfterRollback(ctx, say("undone")))
			return errBusiness
		}))
		require.Error(t, pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error {
			require.NoError(t, millrace.AfterCommit(ctx, say("failed")))
			_, err := tx.Exec(ctx, "SELECT 1/0")
			return err
		}), "a statement that failed is saved by the savepoint")
		inner, err := tx.Begin(ctx)
		require.NoError(t, err)
		require.NoError(t, write(ctx, inner, "kept"))
		require.NoError(t, millrace.AfterCommit(ctx, say("kept")))
		require.NoError(t, inner.Commit(ctx))
		require.ErrorIs(t, inner.Commit(ctx), pgx.ErrTxClosed)
		require.ErrorIs(t, inner.Rollback(ctx), pgx.ErrTxClosed)
		return nil
	}))
	require.Equal(t, "kept", notes(t, pool))
	require.Equal(t, []string{"outer", "undone", "kept"}, ran)
}

func TestRowsOrABatchLeftOpenAreAnErrorNotAHang(t *testing.T) {
	t.Parallel()
	db, pool := open(t)
	err := millrace.InTx(t.Context(), db, func(ctx context.Context, tx pgx.Tx) error {
		require.NoError(t, write(ctx, tx, "a"))
		_, err := tx.Query(ctx, "SELECT generate_series(1, 100000)")
		return err // and the rows are forgotten
	})
	require.ErrorIs(t, err, millrace.ErrConcurrentUse)
	err = millrace.InTx(t.Context(), db, func(ctx context.Context, tx pgx.Tx) error {
		var b pgx.Batch
		b.Queue("INSERT INTO notes VALUES ('b')")
		tx.SendBatch(ctx, &b)
		return nil
	})
	require.ErrorIs(t, err, millrace.ErrConcurrentUse)
	require.Empty(t, notes(t, pool))
	testenv.Eventually(t, 30*time.Second, "connections given back", func() bool { return pool.Stat().AcquiredConns() == 0 })
}

func TestWithoutATransactionStatementsRunOnThePool(t *testing.T) {
	t.Parallel()
	db, pool := open(t)
	require.NoError(t, millrace.InTx(t.Context(), db, func(ctx context.Context, tx pgx.Tx) error {
		require.ErrorIs(t, tx.Commit(ctx), millrace.ErrNoTransaction)
		require.ErrorIs(t, tx.Rollback(ctx), millrace.ErrNoTransaction)
		_, err := tx.Prepare(ctx, "put", "SELECT 1")
		require.ErrorIs(t, err, millrace.ErrNoTransaction)
		require.NoError(t, pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error { return write(ctx, tx, "b") }), "a transaction of pgx's own")
		return write(ctx, tx, "a")
	}, millrace.Never()))
	require.Equal(t, "a b", notes(t, pool))
}

func TestNonsenseAtWiringPanics(t *testing.T) {
	t.Parallel()
	_, pool := open(t)
	require.Panics(t, func() { pgxtx.Pool(nil) })
	require.Panics(t, func() { pgxtx.Pool(pool, millrace.Config{}, millrace.Config{}) })
	require.Panics(t, func() { pgxtx.Pool(pool, millrace.Config{HookTimeout: -1}) })
}
