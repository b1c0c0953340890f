package outbox_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/outbox"
	"github.com/millrace-go/millrace/outbox/outboxtest"
)

func TestCheckPassesWhereTheMigrationsWereApplied(t *testing.T) {
	each(t, func(b *bench) { require.NoError(b, b.box.Check(b.Context())) })
}

// role is a user of the database who may do what grants say, and its URL.
func (b *bench) role(name string, grants ...string) string {
	b.Helper()
	b.exec(`DROP ROLE IF EXISTS ` + name)
	b.exec(`CREATE ROLE ` + name + ` LOGIN PASSWORD 'secret'`)
	b.Cleanup(func() {
		ctx := context.WithoutCancel(b.Context())
		_, _ = b.raw.ExecContext(ctx, `DROP OWNED BY `+name)
		_, _ = b.raw.ExecContext(ctx, `DROP ROLE `+name)
	})
	for _, grant := range grants {
		b.exec(strings.ReplaceAll(grant, "$user", name))
	}
	u, err := url.Parse(b.url)
	require.NoError(b, err)
	u.User = url.UserPassword(name, "secret")
	return u.String()
}

const grantAll = `GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO $user`

func TestCheckNamesWhatIsWrongOnPostgreSQLAndItsRemedy(t *testing.T) {
	for name, c := range map[string]struct {
		before, after string
		want          []string
	}{
		"read-only":        {before: `ALTER ROLE $user SET default_transaction_read_only = on`, want: []string{"default_transaction_read_only", "ALTER ROLE"}},
		"isolation":        {before: `ALTER ROLE $user SET default_transaction_isolation = 'serializable'`, want: []string{"default_transaction_isolation", "read committed"}},
		"timeout":          {before: `ALTER ROLE $user SET statement_timeout = '4s'`, want: []string{"statement_timeout", "4s"}},
		"DELETE revoked":   {before: `REVOKE DELETE ON millrace_outbox FROM $user`, want: []string{"privileges are missing: DELETE on millrace_outbox", "GRANT SELECT"}},
		"SELECT revoked":   {before: `REVOKE ALL ON millrace_lanes FROM $user`, want: []string{"millrace_*", "grant"}},
		"cached sequence":  {before: `ALTER TABLE millrace_outbox ALTER COLUMN pos SET CACHE 20`, want: []string{"CACHE", "SET CACHE 1"}},
		"missing index":    {before: `DROP INDEX millrace_outbox_ready`, want: []string{"indexes are missing: millrace_outbox_ready", "CREATE INDEX IF NOT EXISTS millrace_outbox_ready ON millrace_outbox (topic, lane, pos) WHERE ready;"}},
		"missing lane":     {before: `DELETE FROM millrace_lanes WHERE lane = 7`, want: []string{"63 of its 64"}},
		"older schema":     {before: `DELETE FROM millrace_schema`, want: []string{"have not been created", "millrace.Migrate"}},
		"outbox not there": {before: `DROP TABLE millrace_outbox`, want: []string{"millrace_*"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := open(t, postgres, outbox.Config{})
			role := fmt.Sprintf("check_%d", time.Now().UnixNano())
			url := b.role(role, grantAll, c.before)
			err := connect(t, postgres, url, outbox.Config{}).box.Check(t.Context())
			require.Error(t, err)
			require.True(t, outbox.IsSetup(err), "%v", err)
			for _, want := range c.want {
				require.ErrorContains(t, err, want)
			}
			require.NotContains(t, err.Error(), "secret")
		})
	}
}

func TestCheckTellsSetupFromOutage(t *testing.T) {
	good := open(t, postgres, outbox.Config{})
	with := func(change func(u *url.URL)) string {
		u, err := url.Parse(good.url)
		require.NoError(t, err)
		change(u)
		return u.String()
	}
	for name, c := range map[string]struct {
		url   string
		setup bool
	}{
		"wrong password":   {with(func(u *url.URL) { u.User = url.UserPassword("nobody", "secret") }), true},
		"no such database": {with(func(u *url.URL) { u.Path = "/missing" }), true},
		"nobody listens":   {with(func(u *url.URL) { u.User, u.Host = url.UserPassword("u", "secret"), "127.0.0.1:1" }), false},
	} {
		for _, back := range []backend{postgres, postgresPool, postgresPq} {
			t.Run(name+"/"+back.name, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				err := connect(t, back, c.url, outbox.Config{}).box.Check(ctx)
				require.Error(t, err)
				require.Equal(t, c.setup, outbox.IsSetup(err), "%v", err)
				require.NotContains(t, err.Error(), "secret")
			})
		}
	}
}

func TestCheckWantsWALOnSQLite(t *testing.T) {
	b := open(t, sqlite, outbox.Config{})
	b.raw.SetMaxOpenConns(1) // another one would set it right again
	b.exec(`PRAGMA journal_mode = delete`)
	err := b.box.Check(t.Context())
	require.True(t, outbox.IsSetup(err))
	require.ErrorContains(t, err, "journal_mode(wal)")
}

func TestCheckWantsAutocommitAndOnePrimaryOnMySQL(t *testing.T) {
	b := open(t, mariadb, outbox.Config{})
	for setting, value := range map[string]string{"autocommit": "0", "auto_increment_increment": "2"} {
		bad := connect(t, mariadb, b.url+"&"+setting+"="+value, outbox.Config{})
		err := bad.box.Check(t.Context())
		require.True(t, outbox.IsSetup(err), "%v", err)
		require.ErrorContains(t, err, setting)
	}
}

func TestCheckNamesAMissingIndexAndHowToMakeIt(t *testing.T) {
	for _, back := range []backend{sqlite, mariadb} {
		b := open(t, back, outbox.Config{})
		b.exec(`DROP INDEX millrace_sent_due` + map[bool]string{true: ` ON millrace_sent`}[back.driver == "mysql"])
		err := b.box.Check(t.Context())
		require.True(t, outbox.IsSetup(err), "%v", err)
		require.ErrorContains(t, err, "indexes are missing: millrace_sent_due: ")
		_, remedy, _ := strings.Cut(err.Error(), "millrace_sent_due: ")
		b.exec(remedy)
		require.NoError(t, b.box.Check(t.Context()), "the remedy that was named helps")
	}
}

func TestCheckNamesMissingPrivilegesOnMySQL(t *testing.T) {
	server := testenv.OwnMariaDB(t)
	b := connect(t, mariadb, server.URL, outbox.Config{})
	require.NoError(t, b.box.Migrate(t.Context()))
	var database string
	require.NoError(t, b.raw.QueryRow(`SELECT DATABASE()`).Scan(&database))
	b.exec(`CREATE USER poor@'%' IDENTIFIED BY 'secret'`)
	b.exec("GRANT SELECT, INSERT, UPDATE ON `" + database + "`.* TO poor@'%'")
	_, rest, _ := strings.Cut(server.URL, "@")
	err := connect(t, mariadb, "poor:secret@"+rest, outbox.Config{}).box.Check(t.Context())
	require.True(t, outbox.IsSetup(err), "%v", err)
	require.ErrorContains(t, err, "privileges are missing: DELETE on millrace_outbox, DELETE on millrace_lanes")
	require.NotContains(t, err.Error(), "secret")
}

func TestPublishIntoMissingTablesSaysWhatToDo(t *testing.T) {
	for _, back := range []backend{postgres, postgresPool, sqlite, mariadb} {
		t.Run(back.name, func(t *testing.T) {
			b := connect(t, back, back.source(t), outbox.Config{})
			err := b.inTx(t.Context(), func(ctx context.Context) error { return b.box.Publish(ctx, "orders", msg("1", "secret")) })
			require.Error(t, err)
			require.True(t, outbox.IsSetup(err), "%v", err)
			require.ErrorContains(t, err, "millrace.Migrate")
			require.NotContains(t, err.Error(), "secret")
		})
	}
}

// logged is an outbox in a database that is there, and what it logs.
func logged(t *testing.T, back backend, url string) (*bench, *bytes.Buffer) {
	t.Helper()
	log := new(bytes.Buffer)
	return connect(t, back, url, outbox.Config{Logger: slog.New(slog.NewTextHandler(log, nil))}), log
}

func TestCheckWarnsOfCommitsThatDoNotWaitForTheDisk(t *testing.T) {
	good := open(t, postgres, outbox.Config{})
	b, log := logged(t, postgres, good.url)
	require.NoError(t, b.box.Check(t.Context()))
	require.Empty(t, log.String())
	b, log = logged(t, postgres, good.url+"&synchronous_commit=off")
	require.NoError(t, b.box.Check(t.Context()))
	require.Contains(t, log.String(), "synchronous_commit")

	server := testenv.OwnMariaDB(t)
	b, log = logged(t, mariadb, server.URL)
	require.NoError(t, b.box.Migrate(t.Context()))
	require.NoError(t, b.box.Check(t.Context()))
	require.Empty(t, log.String())
	b.exec(`SET GLOBAL innodb_flush_log_at_trx_commit = 2`)
	require.NoError(t, b.box.Check(t.Context()))
	require.Contains(t, log.String(), "innodb_flush_log_at_trx_commit")
}

func TestCheckWarnsWhereTheLastPositionMayNotBeSeenAndReadsGoOn(t *testing.T) {
	owner := open(t, postgres, outbox.Config{})
	role := fmt.Sprintf("blind_%d", time.Now().UnixNano())
	b, log := logged(t, postgres, owner.role(role, grantAll))
	require.NoError(t, b.box.Check(t.Context()))
	require.Contains(t, log.String(), "SEQUENCES")
	pos := b.insert(outboxtest.Entry{ID: "1", Topic: "t"})
	require.Zero(t, outbox.Raise(t.Context(), b.box.Store()))
	require.Equal(t, pos[0], b.read("t")[0].Pos)
}
