package dberr_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5/pgconn"
	_ "github.com/jackc/pgx/v5/stdlib"
	"github.com/lib/pq"
	"github.com/lib/pq/pqerror"
	"github.com/stretchr/testify/require"
	"modernc.org/sqlite"

	"github.com/millrace-go/millrace/internal/dberr"
	"github.com/millrace-go/millrace/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// failing opens a database and returns the error of inserting a key twice.
func failing(t *testing.T, driver, dsn string) error {
	db, err := sql.Open(driver, dsn)
	require.NoError(t, err)
	t.Cleanup(func() { _ = db.Close() })
	_, err = db.Exec("CREATE TABLE t (i int PRIMARY KEY)")
	require.NoError(t, err)
	_, err = db.Exec("INSERT INTO t VALUES (1), (1)")
	require.Error(t, err)
	return fmt.Errorf("insert: %w", errors.Join(errors.New("first"), err))
}

func TestTheRealDriversErrorsAreRead(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"pgx", "postgres"} {
		err := failing(t, name, testenv.Postgres(t))
		require.Equal(t, "23505", dberr.SQLState(err))
		require.Zero(t, dberr.MySQL(err))
		require.Zero(t, dberr.SQLite(err))
		require.Equal(t, dberr.Failed, dberr.After("postgres", err))
		require.True(t, dberr.NotCommitted("postgres", err))
	}
	err := failing(t, "mysql", testenv.MariaDB(t))
	require.Equal(t, 1062, dberr.MySQL(err))
	require.Zero(t, dberr.SQLite(err))
	require.Equal(t, dberr.Unharmed, dberr.After("mysql", err))
	err = failing(t, "sqlite", testenv.SQLite(t))
	require.Equal(t, 19, dberr.SQLite(err))
	require.Zero(t, dberr.MySQL(err))
	require.Empty(t, dberr.SQLState(err))
	require.Zero(t, dberr.SQLite(nil))
	var typed *sqlite.Error
	require.ErrorAs(t, err, &typed)
}

func TestALostConnectionIsNoAnswerToCommit(t *testing.T) {
	t.Parallel()
	lost := []error{
		driver.ErrBadConn, io.EOF, io.ErrUnexpectedEOF, net.ErrClosed, sql.ErrConnDone, mysql.ErrInvalidConn,
		errors.New("conn closed"), context.Canceled, context.DeadlineExceeded,
		&net.OpError{Op: "read", Err: errors.New("connection reset by peer")},
	}
	for _, err := range lost {
		require.True(t, dberr.Lost(err), "%v", err)
		for _, dialect := range []string{"postgres", "mysql", "sqlite"} {
			require.Equal(t, dberr.Gone, dberr.After(dialect, err), "%v", err)
			require.False(t, dberr.NotCommitted(dialect, err), "%v", err)
		}
	}
	require.False(t, dberr.Lost(errors.New("bad argument")))
}

func TestOnlyDefiniteAnswersToCommitMeanRolledBack(t *testing.T) {
	t.Parallel()
	for state, definite := range map[string]bool{
		"40001": true, "40P01": true, "23505": true, "40003": false, "57P01": false, "57P02": false, "57P03": false,
		"08006": false, "08P01": false,
	} {
		require.Equal(t, definite, dberr.NotCommitted("postgres", &pgconn.PgError{Code: state}), state)
		require.Equal(t, definite, dberr.NotCommitted("postgres", &pq.Error{Code: pqerror.Code(state)}), state)
	}
	for number, definite := range map[uint16]bool{
		1213: true, 3101: true, 1792: true, 1290: true, 1053: false, 1317: false, 1927: false, 1205: false,
	} {
		require.Equal(t, definite, dberr.NotCommitted("mysql", &mysql.MySQLError{Number: number}), "%d", number)
	}
}

func TestWhatMaySucceedWhenRunAgain(t *testing.T) {
	t.Parallel()
	require.True(t, dberr.Retryable(&pgconn.PgError{Code: "40001"}))
	require.True(t, dberr.Retryable(&pq.Error{Code: "40P01"}))
	require.True(t, dberr.Retryable(&mysql.MySQLError{Number: 1213}))
	require.False(t, dberr.Retryable(&pgconn.PgError{Code: "23505"}))
	require.False(t, dberr.Retryable(nil))
}
