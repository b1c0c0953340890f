// Package pgxnewest tests with the newest pgx, which an application may choose although millrace itself asks for an
// older one. Raise it here, and only here: go get github.com/jackc/pgx/v5@latest && go mod tidy.
package pgxnewest

import (
	"context"
	"database/sql"
	"errors"
	"os/exec"
	"regexp"
	"testing"
	"time"

	_ "github.com/go-sql-driver/mysql" // as do the next: what the tests of millrace need is written into go.sum
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	_ "github.com/jackc/pgx/v5/stdlib"
	_ "github.com/lib/pq"
	"github.com/stretchr/testify/require"
	_ "modernc.org/sqlite"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/internal/fault/proxy"
	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/pgxtx"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// The tests of millrace about transactions, those that cut COMMIT among them, run here with this module's pgx.
func TestTransactionsAreTruthfulWithTheNewestPgx(t *testing.T) {
	t.Parallel()
	const outcomes = "CutCommit|CancelAtAnyMoment|CannotBeFoundOut|Witness|Transactions|Handle|Hooks|Events|Commit"
	cmd := exec.CommandContext(t.Context(), "go", "test", "-v", "-race", "-count=1", "-run", "("+outcomes+")/^pgx", "github.com/millrace-go/millrace")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	for _, driver := range []string{"pgx", "pgx-stdlib"} {
		for _, fault := range []string{"request_lost", "request_stalled", "reply_lost", "reply_stalled"} {
			require.Contains(t, string(out), "--- PASS: TestTheOutcomeOfACutCommitIsNeverGuessed/"+driver+"/"+fault)
			require.Contains(t, string(out), "--- PASS: TestTheOutcomeOfACutCommitIsFoundOut/"+driver+"/"+fault)
		}
	}
}

// replyLost is a database behind a proxy that loses the connection, once, when the server has executed the
// statement with these bytes and before it is heard.
func replyLost(t *testing.T, bytes string) (direct *sql.DB, through string) {
	dsn := testenv.Postgres(t)
	direct, err := sql.Open("pgx", dsn)
	require.NoError(t, err)
	t.Cleanup(func() { _ = direct.Close() })
	_, err = direct.Exec("CREATE TABLE notes (note TEXT)")
	require.NoError(t, err)
	server := regexp.MustCompile(`127\.0\.0\.1:\d+`)
	p := proxy.New(t, server.FindString(dsn))
	p.OnBytes(true, []byte(bytes), func() {
		p.BlackholeReplies(true)
		time.AfterFunc(200*time.Millisecond, func() {
			p.Cut()
			p.BlackholeReplies(false)
		})
	})
	return direct, server.ReplaceAllString(dsn, p.Addr)
}

func rows(t *testing.T, db *sql.DB) (n int) {
	require.NoError(t, db.QueryRow("SELECT COUNT(*) FROM notes").Scan(&n))
	return n
}

// pgx 5.9.2 and later says of a connection that was lost behind a statement that nothing had been sent, and
// database/sql runs an Exec without arguments again. When this test fails because there is one row, pgx has been
// repaired: docs/transactions.md then says too much.
func TestPgxRunsAnExecWithoutArgumentsTwice(t *testing.T) {
	t.Parallel()
	direct, through := replyLost(t, "INSERT INTO")
	db, err := sql.Open("pgx", through)
	require.NoError(t, err)
	defer db.Close()
	_, err = db.Exec("INSERT INTO notes VALUES ('once')")
	require.NoError(t, err)
	require.Equal(t, 2, rows(t, direct))
}

// What it does not do: repeat an Exec with arguments, or anything inside of a transaction.
func TestPgxRunsNothingTwiceWithArgumentsOrInATransaction(t *testing.T) {
	t.Parallel()
	const insert = "INSERT INTO notes VALUES ('once')"
	for name, run := range map[string]func(ctx context.Context, dsn string, db *sql.DB) error{
		"arguments": func(ctx context.Context, _ string, db *sql.DB) error {
			_, err := db.ExecContext(ctx, "INSERT INTO notes VALUES ($1)", "once")
			return err
		},
		"InTx": func(ctx context.Context, _ string, db *sql.DB) error {
			return millrace.InTx(ctx, millrace.SQL(db), func(ctx context.Context, tx *millrace.Tx) error {
				_, err := tx.ExecContext(ctx, insert)
				return err
			})
		},
		"InTx on a pool": func(ctx context.Context, dsn string, _ *sql.DB) error {
			pool, err := pgxpool.New(ctx, dsn)
			if err != nil {
				return err
			}
			defer pool.Close()
			return millrace.InTx(ctx, pgxtx.Pool(pool), func(ctx context.Context, tx pgx.Tx) error {
				_, err := tx.Exec(ctx, insert)
				return err
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			direct, through := replyLost(t, "INSERT INTO notes")
			db, err := sql.Open("pgx", through)
			require.NoError(t, err)
			defer db.Close()
			err = run(t.Context(), through, db)
			if errors.Is(err, context.DeadlineExceeded) {
				t.Fatal(err)
			}
			require.Error(t, err)
			require.LessOrEqual(t, rows(t, direct), 1)
		})
	}
}
