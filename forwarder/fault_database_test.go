package forwarder_test

import (
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/forwarder"
	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/outbox"
)

// at is a database that is there already.
func at(d database, source string) database {
	d.source = func(testing.TB) string { return source }
	return d
}

func TestKillsOfTheDatabaseUnderLoadLoseNothing(t *testing.T) {
	t.Parallel()
	kills := 2
	if testenv.Full() {
		kills = 20
	}
	for _, d := range []struct {
		database
		own func(t testing.TB) *testenv.Server
	}{{postgres, testenv.OwnPostgres}, {mariadb, testenv.OwnMariaDB}} {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			server := d.own(t)
			l := newLedger(t, at(d.database, server.URL))
			pub := record{t.TempDir() + "/got"}
			cfg := processConfig
			cfg.Lease = 30 * time.Second // a kill does not end it
			_, stopFirst := l.run(pub, cfg)
			_, stopSecond := l.run(pub, cfg)
			stop := l.inBackground(newSeed(t), load{
				writers: 6, keys: contended, keyed: 50, free: 3, rollbacks: 10, savepoints: true, hold: 6 * time.Millisecond, outages: true})
			for i := range kills {
				before := len(pub.ids(t))
				testenv.Eventually(t, 3*time.Minute, fmt.Sprintf("messages flow before kill %d", i), func() bool { return len(pub.ids(t)) > before+200 })
				server.Kill()
				server.Start()
			}
			before := len(pub.ids(t))
			testenv.Eventually(t, 3*time.Minute, "messages flow again", func() bool { return len(pub.ids(t)) > before })
			stop()
			l.settled()
			require.NoError(t, stopFirst())
			require.NoError(t, stopSecond())
			duplicates := l.requireReconciled(pub.ids(t))
			require.LessOrEqual(t, duplicates, kills*2*window)
			l.requireNothingParked()
			t.Logf("%d kills, %d committed, %d unknown to their writers, %d duplicates", kills, len(l.committed), l.unknown, duplicates)
		})
	}
}

// TestAForeignTransactionThatStaysOpenDelaysNothing has others write and not commit: in this database,
// in another one of the same server, and a message in the outbox itself.
func TestAForeignTransactionThatStaysOpenDelaysNothing(t *testing.T) {
	t.Parallel()
	const insert = `INSERT INTO ledger VALUES ('foreign')`
	for _, d := range []database{postgres, mariadb} {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			l := newLedger(t, d)
			elsewhere, err := sql.Open(d.driver, d.source(t))
			require.NoError(t, err)
			defer elsewhere.Close()
			_, err = elsewhere.ExecContext(t.Context(), `CREATE TABLE ledger (id VARCHAR(80) PRIMARY KEY)`)
			require.NoError(t, err)

			begin := func(db *sql.DB) *sql.Tx {
				tx, err := db.BeginTx(t.Context(), &sql.TxOptions{Isolation: sql.LevelRepeatableRead})
				require.NoError(t, err)
				_, err = tx.ExecContext(t.Context(), insert)
				require.NoError(t, err)
				return tx
			}
			here, there := begin(l.raw), begin(elsewhere)
			defer here.Rollback()
			defer there.Rollback()
			published, release, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
			go func() {
				ended <- millrace.InTx(t.Context(), l.db, func(ctx context.Context, tx *millrace.Tx) error {
					if _, err := tx.ExecContext(ctx, `INSERT INTO ledger VALUES ('open-1')`); err != nil {
						return err
					}
					if err := l.box.Publish(ctx, "orders", message1("open-1")); err != nil {
						return err
					}
					err := l.box.Flush(ctx) // it has its position, below all that follow
					close(published)
					<-release
					return err
				})
			}()
			<-published

			pub := record{t.TempDir() + "/got"}
			_, stop := l.run(pub, forwarder.Config{})
			l.put(t.Context(), newSeed(t), 1000, load{writers: 8, keys: contended, keyed: 50, free: 3, rollbacks: 10})
			testenv.Eventually(t, 3*time.Minute, "all that was committed meanwhile", func() bool { return len(pub.ids(t)) >= len(l.said) && l.waiting() == 0 })
			close(release)
			require.NoError(t, <-ended)
			l.settled()
			require.NoError(t, here.Rollback())
			require.NoError(t, there.Rollback())
			require.NoError(t, stop())
			require.Zero(t, l.requireReconciled(pub.ids(t)), "duplicates")
		})
	}
}

// client is a program of the database's own.
func client(t *testing.T, stdin *bytes.Buffer, env []string, names []string, args ...string) *bytes.Buffer {
	t.Helper()
	program := ""
	for _, name := range names {
		if path, err := exec.LookPath(name); err == nil {
			program = path
			break
		}
		if found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/" + name); len(found) > 0 {
			program = found[len(found)-1]
			break
		}
	}
	require.NotEmpty(t, program, "%v is not installed: it comes with the server, or in the package of its client", names)
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if stdin != nil {
		cmd.Stdin = stdin
	}
	require.NoError(t, cmd.Run(), "%s: %s", program, errs.String())
	return &out
}

// copyPostgres takes a dump of one database into an empty one.
func copyPostgres(t *testing.T, from, to string) {
	t.Helper()
	dump := client(t, nil, nil, []string{"pg_dump"}, "--no-owner", "--dbname="+from)
	client(t, dump, nil, []string{"psql"}, "--quiet", "--no-psqlrc", "--set=ON_ERROR_STOP=1", "--dbname="+to)
}

func copyMariaDB(t *testing.T, from, to string) {
	t.Helper()
	options := func(dsn string) (env, args []string, name string) {
		c, err := mysql.ParseDSN(dsn)
		require.NoError(t, err)
		host, port, _ := strings.Cut(c.Addr, ":")
		return []string{"MYSQL_PWD=" + c.Passwd}, []string{"--no-defaults", "--host=" + host, "--port=" + port, "--user=" + c.User}, c.DBName
	}
	env, args, name := options(from)
	dump := client(t, nil, env, []string{"mariadb-dump", "mysqldump"}, append(args, "--single-transaction", name)...)
	env, args, name = options(to)
	client(t, dump, env, []string{"mariadb", "mysql"}, append(args, name)...)
}

// TestAnOutboxRestoredFromADumpIntoAnotherServerGoesOn takes the dump under load. What the dump holds
// is sent, again if need be; what it does not hold any more had been sent before.
func TestAnOutboxRestoredFromADumpIntoAnotherServerGoesOn(t *testing.T) {
	t.Parallel()
	type elsewhere struct {
		database
		own  func(t testing.TB) *testenv.Server
		copy func(t *testing.T, from, to string)
	}
	dbs := []elsewhere{{postgres, testenv.OwnPostgres, copyPostgres}}
	if testenv.Full() {
		dbs = append(dbs, elsewhere{mariadb, testenv.OwnMariaDB, copyMariaDB})
	}
	for _, d := range dbs {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			l := newLedger(t, d.database)
			old := record{t.TempDir() + "/old"}
			work := load{writers: 4, keys: contended, keyed: 50, free: 3, rollbacks: 10, hold: 5 * time.Millisecond}
			l.put(t.Context(), newSeed(t), 500, work)
			_, stopForwarder := l.run(slowly{old}, forwarder.Config{Batches: 1, BatchRows: 20, ReadAheadRows: 40, Lease: 4 * time.Second}) // which the dump holds
			stopWriters := l.inBackground(newSeed(t), work)
			testenv.Eventually(t, 3*time.Minute, "messages flow", func() bool { return len(old.ids(t)) > 100 })

			server := d.own(t)
			source := server.URL
			if d.driver == "pgx" {
				source = anotherDatabase(t, server.URL)
			}
			d.copy(t, l.dsn, source)
			stopWriters()
			_ = stopForwarder() // in so short a lease not everything may be stored: then it is sent, and waits
			sent := map[string]bool{}
			for _, id := range old.ids(t) {
				sent[id] = true
			}

			r := l.reopen(t, at(d.database, source))
			restored := r.ids(`SELECT id FROM millrace_outbox`)
			require.NotEmpty(t, restored, "there was a backlog")
			all := r.ids(`SELECT id FROM ledger`)
			for id := range all {
				require.True(t, restored[id] || sent[id], "%s is in the restored database, and neither waits nor was sent", id)
			}
			pub := record{t.TempDir() + "/new"}
			_, stop := r.run(pub, forwarder.Config{})
			r.put(t.Context(), newSeed(t), 200, work)
			r.settled()
			require.NoError(t, stop())
			for id := range all {
				if !restored[id] {
					r.exec(`DELETE FROM ledger WHERE id = '` + id + `'`) // sent before the dump
				}
			}
			require.Zero(t, r.requireReconciled(pub.ids(t)), "duplicates")
			t.Logf("%d restored, %d sent by the old one, %d by the new one", len(restored), len(sent), len(pub.ids(t)))
		})
	}
}

// anotherDatabase makes an empty database in a PostgreSQL.
func anotherDatabase(t *testing.T, server string) string {
	t.Helper()
	raw, err := sql.Open("pgx", server)
	require.NoError(t, err)
	defer raw.Close()
	_, err = raw.ExecContext(t.Context(), `CREATE DATABASE restored`)
	require.NoError(t, err)
	u, err := url.Parse(server)
	require.NoError(t, err)
	u.Path = "/restored"
	return u.String()
}

// reopen is the same service on a copy of its database.
func (l *ledger) reopen(t *testing.T, d database) *ledger {
	t.Helper()
	s := &stage{TB: t, database: d, dsn: d.source(t), committed: map[string]bool{}}
	raw, err := sql.Open(d.driver, s.dsn)
	require.NoError(t, err)
	t.Cleanup(func() { _ = raw.Close() })
	s.raw, s.db = raw, millrace.SQL(raw)
	s.box, err = outbox.New(s.db, outbox.Config{})
	require.NoError(t, err)
	s.serial.Store(l.serial.Load() + 1_000_000)
	return &ledger{stage: s, said: map[string]bool{}, denied: map[string]bool{}}
}
