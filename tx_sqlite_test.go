package millrace_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/internal/testenv"
)

// Beside one busy writer SQLite itself lets another wait until its busy timeout ends.
func TestSQLiteWritersTakeTurns(t *testing.T) {
	t.Parallel()
	e := newEnv(t, "sqlite", millrace.Config{})
	writer := exec.CommandContext(t.Context(), os.Args[0])
	writer.Env = append(os.Environ(), "MILLRACE_TEST_WRITER="+e.dsn)
	writer.Stderr = os.Stderr
	require.NoError(t, writer.Start())
	t.Cleanup(func() { _ = writer.Process.Kill(); _ = writer.Wait() })

	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	const others = 5 // with the process
	for i := range others - 1 {
		wg.Go(func() { write(ctx, t.Error, e, fmt.Sprint("w", i)) })
	}
	testenv.Eventually(t, time.Minute, "the other process writes", func() bool {
		var n int
		err := e.admin.QueryRow("SELECT COUNT(*) FROM notes WHERE note LIKE 'other%'").Scan(&n)
		return err == nil && n > 5
	})
	var turns []int // of others, during each wait for one
	for i := range 50 {
		before := count(t, e.admin, "SELECT COUNT(*) FROM notes")
		_, err := e.db.TxnPool().Exec(ctx, "INSERT INTO notes VALUES (?)", fmt.Sprint("settle", i))
		require.NoError(t, err)
		turns = append(turns, count(t, e.admin, "SELECT COUNT(*) FROM notes")-before-1)
	}
	cancel()
	wg.Wait()
	slices.Sort(turns)
	t.Logf("turns of the %d others during a wait: half %d, most %d", others, turns[len(turns)/2], turns[len(turns)-1])
	require.LessOrEqual(t, turns[len(turns)/2], 3*others, "as a rule, everybody has one turn before me")
}

// write keeps a transaction of 5 ms open, over and over.
func write(ctx context.Context, fail func(...any), e *env, name string) {
	for i := 0; ctx.Err() == nil; i++ {
		err := e.InTx(ctx, func(ctx context.Context, tx handle) error {
			if _, err := tx.Count(ctx, "SELECT COUNT(*) FROM notes"); err != nil {
				return err
			}
			<-time.After(5 * time.Millisecond)
			return note(ctx, tx, fmt.Sprintf("%s-%d", name, i))
		})
		if err != nil && ctx.Err() == nil {
			fail(err)
			return
		}
	}
}

// otherWriter is the process that TestSQLiteWritersTakeTurns starts.
func otherWriter(dsn string) {
	db := openDB("sqlite", dsn)
	e := sqlEnv(db)
	write(context.Background(), func(v ...any) { fmt.Fprintln(os.Stderr, v...); os.Exit(1) }, e, "other")
}

func TestAWriteBesideAnOpenTransactionIsRefusedOnSQLite(t *testing.T) {
	t.Parallel()
	e := newEnv(t, "sqlite", millrace.Config{})
	err := e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
		_, err := e.db.TxnPool().Exec(ctx, "DELETE FROM notes")
		return err
	})
	require.ErrorIs(t, err, millrace.ErrTransactionOpen)
}

func TestSQLiteTransactionsWriteFromTheStart(t *testing.T) {
	t.Parallel()
	for _, dsn := range []string{"", "&_txlock=deferred", "&_txlock=immediate"} {
		db := openDB("sqlite", "file:"+testenv.SQLite(t)+"?_pragma=journal_mode(WAL)"+dsn)
		t.Cleanup(func() { _ = db.Close() })
		_, err := db.Exec(schema)
		require.NoError(t, err)
		e := sqlEnv(db)
		var wg sync.WaitGroup
		stranger, stop := context.WithCancel(t.Context())
		wg.Go(func() { writePastTheGate(stranger, t, db) })
		var ours sync.WaitGroup
		for i := range 4 { // each reads first: after a plain BEGIN the stranger's writes would come between
			ours.Go(func() {
				for k := range 10 {
					err := e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
						if _, err := tx.Count(ctx, "SELECT COUNT(*) FROM notes"); err != nil {
							return err
						}
						<-time.After(2 * time.Millisecond)
						return note(ctx, tx, fmt.Sprint(i, "-", k))
					})
					if err != nil {
						t.Error(err)
					}
				}
			})
		}
		ours.Wait()
		stop()
		wg.Wait()
	}
}

// writePastTheGate is a writer that knows nothing of millrace.
func writePastTheGate(ctx context.Context, t *testing.T, db *sql.DB) {
	for i := 0; ctx.Err() == nil; i++ {
		began := time.Now()
		_, err := db.ExecContext(ctx, "INSERT INTO notes VALUES ('stranger-"+strconv.Itoa(i)+"')")
		<-time.After(time.Since(began)) // half of the time is for others, however slow the disk is
		if err != nil && ctx.Err() == nil && !strings.Contains(err.Error(), "SQLITE_BUSY") {
			t.Error(err)
			return
		}
	}
}

func TestAnInMemoryDatabaseWorks(t *testing.T) {
	t.Parallel()
	db := openDB("sqlite", ":memory:")
	t.Cleanup(func() { _ = db.Close() })
	db.SetMaxOpenConns(1)
	_, err := db.Exec(schema)
	require.NoError(t, err)
	require.NoError(t, sqlEnv(db).InTx(t.Context(), func(ctx context.Context, tx handle) error { return note(ctx, tx, "a") }))
}

// Without WAL a reader keeps a writer from committing. COMMIT then says busy, and that is definite.
func TestACommitThatSQLiteIsTooBusyForIsARollback(t *testing.T) {
	t.Parallel()
	db := openDB("sqlite", "file:"+testenv.SQLite(t)+"?_pragma=journal_mode(DELETE)&_pragma=busy_timeout(50)")
	t.Cleanup(func() { _ = db.Close() })
	_, err := db.Exec(schema + "; INSERT INTO notes VALUES ('x'), ('y')")
	require.NoError(t, err)
	e := sqlEnv(db)
	reader, err := db.QueryContext(t.Context(), "SELECT note FROM notes")
	require.NoError(t, err)
	require.True(t, reader.Next(), "it holds a shared lock until it is closed")

	var j journal
	err = e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
		return errors.Join(note(ctx, tx, "a"), j.all(ctx, ""))
	})
	require.ErrorContains(t, err, "SQLITE_BUSY")
	var unknown *millrace.UnknownOutcomeError
	require.NotErrorAs(t, err, &unknown)
	require.Equal(t, "before, rolledback, done:rolled back", j.String())
	require.NoError(t, reader.Close())
	require.Equal(t, "x y", e.notes(t))
	require.NoError(t, e.InTx(t.Context(), func(ctx context.Context, tx handle) error { return note(ctx, tx, "b") }), "the connection is as it was")
	require.Equal(t, "b x y", e.notes(t))
}
