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
			testenv.Eventually(t, 3*time.Minute, "transactions fail for want of room", func() bool { return refused() > 20 })
			require.NotZero(t, l.waiting())
			back.Store(true)
			d.relieve(t)
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
	disks := []fullDisk{{small, ballast, func(*testing.T) {}}}
	if !testenv.Full() {
		return disks
	}
	var folder string
	return append(disks, fullDisk{postgres,
		func(t *testing.T, l *ledger) {
			raw, data := l.raw, ""
			require.NoError(t, raw.QueryRow(`SHOW data_directory`).Scan(&data))
			folder = smallFileSystem(t, data)
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
		func(t *testing.T) {
			require.NoError(t, syscall.Mount("tmpfs", folder, "tmpfs", syscall.MS_REMOUNT, "size=64m"))
		},
	})
}

// smallFileSystem has room for half a megabyte, and belongs to whom the folder like belongs.
func smallFileSystem(t *testing.T, like string) string {
	t.Helper()
	folder, err := os.MkdirTemp("", "millrace-small-")
	require.NoError(t, err)
	require.NoError(t, syscall.Mount("tmpfs", folder, "tmpfs", 0, "size=512k"), "as root, and where mounting is allowed")
	t.Cleanup(func() {
		require.NoError(t, syscall.Unmount(folder, syscall.MNT_DETACH))
		require.NoError(t, os.Remove(folder))
	})
	owner, err := os.Stat(like)
	require.NoError(t, err)
	require.NoError(t, os.Chown(folder, int(owner.Sys().(*syscall.Stat_t).Uid), -1))
	return folder
}
