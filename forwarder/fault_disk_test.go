package forwarder_test

import (
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/forwarder"
	"github.com/millrace-go/millrace/internal/testenv"
)

// TestADiskThatIsFullRollsBackAndRecovers fills the outbox while the broker is away, until the database
// has no room. The business is told no; when the broker is back, everything goes on by itself.
func TestADiskThatIsFullRollsBackAndRecovers(t *testing.T) {
	t.Parallel()
	for _, d := range fullDisks(t) {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			l := newLedger(t, d.database)
			d.confine(t, l)
			var back atomic.Bool
			pub := away{record{filepath.Join(t.TempDir(), "got")}, func() bool { return !back.Load() }}
			_, stop := l.run(pub, forwarder.Config{PollInterval: 50 * time.Millisecond, MaxPollInterval: 100 * time.Millisecond})
			work := load{writers: 2, keys: 5, keyed: 50, free: 5, rollbacks: 10, outages: true}
			stopWriters := l.inBackground(newSeed(t), work)
			refused := func() int {
				l.mu.Lock()
				defer l.mu.Unlock()
				n := 0
				for id := range l.denied {
					if id[:5] != "ghost" {
						n++
					}
				}
				return n
			}
			testenv.Eventually(t, 3*time.Minute, "transactions fail for want of room", func() bool {
				return refused() > 20 || d.dies && l.raw.PingContext(t.Context()) != nil
			})
			d.relieve(t)
			require.NotZero(t, l.waiting())
			back.Store(true)
			testenv.Eventually(t, 3*time.Minute, "transactions commit again", func() bool {
				l.mu.Lock()
				before := len(l.said)
				l.mu.Unlock()
				pace(t.Context(), 100*time.Millisecond)
				l.mu.Lock()
				defer l.mu.Unlock()
				return len(l.said) > before+5
			})
			stopWriters()
			l.settled()
			require.NoError(t, stop())
			require.Zero(t, l.requireReconciled(pub.ids(t)), "duplicates")
			l.requireNothingParked()
			t.Logf("%d committed, %d refused for want of room", len(l.committed), refused())
		})
	}
}

// fullDisk is a database with little room.
type fullDisk struct {
	database
	dies    bool                          // its server may end itself, and is killed if it does not
	confine func(t *testing.T, l *ledger) // the outbox
	relieve func(t *testing.T)            // give it more room, where draining the outbox does not
}

// fullDisks are SQLite with a limit of its own, and in the full run servers whose outbox stands on a small
// file system: to mount that, the test has to be root.
func fullDisks(t *testing.T) []fullDisk {
	small := sqlite
	source := small.source
	small.source = func(t testing.TB) string { return source(t) + "&_pragma=max_page_count(400)" }
	ballast := func(_ *testing.T, l *ledger) {
		l.exec(`CREATE TABLE ballast (b BLOB)`)
		for {
			if _, err := l.raw.Exec(`INSERT INTO ballast VALUES (zeroblob(8192))`); err != nil {
				break
			}
		}
		l.exec(`DELETE FROM ballast WHERE rowid <= 10`)
	}
	disks := []fullDisk{{small, false, ballast, func(*testing.T) {}}}
	if !testenv.Full() {
		return disks
	}
	return append(disks, fullPostgres(), fullMariaDB("mariadb", "6m", false), fullMariaDB("mariadb that dies of it", "2m", true))
}

func fullPostgres() fullDisk {
	var folder string
	return fullDisk{postgres, false,
		func(t *testing.T, l *ledger) {
			raw, data := l.raw, ""
			require.NoError(t, raw.QueryRow(`SHOW data_directory`).Scan(&data))
			folder = smallFileSystem(t, data, "512k")
			_, err := raw.Exec(`CREATE TABLESPACE small LOCATION '` + folder + `'`)
			require.NoError(t, err)
			t.Cleanup(func() {
				for _, statement := range []string{`DROP TABLE millrace_outbox`, `DROP TABLESPACE small`} {
					_, err := raw.Exec(statement)
					require.NoError(t, err)
				}
			})
			l.exec(`ALTER TABLE millrace_outbox SET TABLESPACE small`)
		},
		func(t *testing.T) { moreRoom(t, folder) },
	}
}

// fullMariaDB has a server of its own. A table goes to another folder only when it is made; the logs by which it is rolled
// back stand elsewhere. InnoDB takes room by the megabyte, and keeps some of it for what has to shrink; where there is
// not enough even for that, it may not be able to roll back, and then ends itself.
func fullMariaDB(name, size string, dies bool) fullDisk {
	var folder string
	var server *testenv.Server
	small := database{name, mariadb.driver, func(t testing.TB) string {
		server = testenv.OwnMariaDB(t)
		return server.URL
	}}
	return fullDisk{small, dies,
		func(t *testing.T, l *ledger) {
			raw, data, name, table := l.raw, "", "", ""
			require.NoError(t, raw.QueryRow(`SELECT @@datadir`).Scan(&data))
			require.NoError(t, raw.QueryRow(`SHOW CREATE TABLE millrace_outbox`).Scan(&name, &table))
			folder = smallFileSystem(t, data, size)
			l.exec(`DROP TABLE millrace_outbox`)
			l.exec(table + ` DATA DIRECTORY = '` + folder + `'`)
			t.Cleanup(func() {
				_, err := raw.Exec(`DROP TABLE millrace_outbox`)
				require.NoError(t, err)
			})
			files, err := filepath.Glob(filepath.Join(folder, "*", "millrace_outbox.ibd"))
			require.NoError(t, err)
			require.Len(t, files, 1, "the outbox is on the small file system")
		},
		func(t *testing.T) {
			moreRoom(t, folder)
			if dies {
				server.Kill()
				server.Start()
			}
		},
	}
}

// smallFileSystem has little room, and belongs to whom the folder like belongs.
func smallFileSystem(t *testing.T, like, size string) string {
	t.Helper()
	folder, err := os.MkdirTemp("", "millrace-small-")
	require.NoError(t, err)
	require.NoError(t, syscall.Mount("tmpfs", folder, "tmpfs", 0, "size="+size), "as root, and where mounting is allowed")
	t.Cleanup(func() {
		require.NoError(t, syscall.Unmount(folder, syscall.MNT_DETACH))
		require.NoError(t, os.Remove(folder))
	})
	owner, err := os.Stat(like)
	require.NoError(t, err)
	require.NoError(t, os.Chown(folder, int(owner.Sys().(*syscall.Stat_t).Uid), -1))
	return folder
}

func moreRoom(t *testing.T, folder string) {
	require.NoError(t, syscall.Mount("tmpfs", folder, "tmpfs", syscall.MS_REMOUNT, "size=64m"))
}
