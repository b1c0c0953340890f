package half_test

import (
	"context"
	"database/sql"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	_ "github.com/go-sql-driver/mysql"
	_ "github.com/jackc/pgx/v5/stdlib"
	_ "github.com/lib/pq"
	"github.com/stretchr/testify/require"
	_ "modernc.org/sqlite"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/outbox"
	"github.com/millrace-go/millrace/outbox/half"
)

func TestMain(m *testing.M) { testenv.Main(m, testenv.Role("producer", producer)) }

// database is a kind of database, empty.
type database struct {
	driver string
	source func(t testing.TB) string
}

var (
	postgres = database{"pgx", testenv.Postgres}
	pq       = database{"postgres", testenv.Postgres}
	mariadb  = database{"mysql", testenv.MariaDB}
	sqlite   = database{"sqlite", func(t testing.TB) string {
		return "file:" + testenv.SQLite(t) + "?_pragma=journal_mode(wal)&_pragma=busy_timeout(5000)"
	}}
)

// pairs are databases of the outbox and of the business.
var pairs = map[string][2]database{
	"outbox on postgres, business on postgres": {postgres, pq},
	"outbox on postgres, business on sqlite":   {pq, sqlite},
	"outbox on mariadb, business on postgres":  {mariadb, postgres},
	"outbox on sqlite, business on mariadb":    {sqlite, mariadb},
}

// scene is an outbox and a business in two databases.
type scene struct {
	*testing.T
	out, biz           *millrace.SQLDB
	outRaw, bizRaw     *sql.DB
	outURL, bizURL     string
	outDriver, bizName string
	box                *outbox.Box
}

func each(t *testing.T, test func(s *scene)) {
	for name, pair := range pairs {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(newScene(t, pair))
		})
	}
}

func newScene(t *testing.T, pair [2]database) *scene {
	t.Helper()
	s := &scene{T: t, outURL: pair[0].source(t), bizURL: pair[1].source(t), outDriver: pair[0].driver, bizName: pair[1].driver}
	s.outRaw, s.out = s.open(s.outDriver, s.outURL)
	s.bizRaw, s.biz = s.open(s.bizName, s.bizURL)
	box, err := outbox.New(s.out, outbox.Config{})
	require.NoError(t, err)
	s.box = box
	require.NoError(t, box.Migrate(t.Context()))
	require.NoError(t, millrace.Migrate(t.Context(), s.out, half.Migrations()))
	require.NoError(t, millrace.Migrate(t.Context(), s.biz, half.BarrierMigrations()))
	_, err = s.bizRaw.ExecContext(t.Context(), `CREATE TABLE orders (id VARCHAR(64) PRIMARY KEY)`)
	require.NoError(t, err)
	return s
}

func (s *scene) open(driver, url string) (*sql.DB, *millrace.SQLDB) {
	s.Helper()
	raw, err := sql.Open(driver, url)
	require.NoError(s, err)
	s.Cleanup(func() { _ = raw.Close() })
	return raw, millrace.SQL(raw)
}

// messages is a half message store that checks back soon.
func (s *scene) messages(cfg half.Config) *half.Messages {
	s.Helper()
	if cfg.Witnesses == nil && cfg.Checkers == nil {
		cfg.Witnesses = map[string]millrace.DB{"orders": s.biz}
	}
	if cfg.FirstCheck == 0 {
		cfg.FirstCheck = time.Millisecond
	}
	if cfg.CheckEvery == 0 {
		cfg.CheckEvery = 20 * time.Millisecond
	}
	m, err := half.New(s.out, s.box, cfg)
	require.NoError(s, err)
	require.NoError(s, m.Check(s.Context()))
	return m
}

// run checks back until the test, or what it returns, ends it.
func (s *scene) run(m *half.Messages) (stop func()) {
	s.Helper()
	ctx, cancel := context.WithCancel(s.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	stopped := false
	stop = func() {
		cancel()
		if !stopped {
			stopped = true
			require.NoError(s, <-done)
		}
	}
	s.Cleanup(stop)
	return stop
}

// order inserts a row into the business's table, in the transaction.
func order(ctx context.Context, tx *millrace.Tx, id string) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO orders (id) VALUES ('`+id+`')`)
	return err
}

func (s *scene) one(db *sql.DB, query string) (n int) {
	s.Helper()
	require.NoError(s, db.QueryRowContext(s.Context(), query).Scan(&n))
	return n
}

// age makes a time eight days older.
func (s *scene) age(db *sql.DB, driver, table, column string) {
	s.Helper()
	older := map[string]string{
		"pgx": "interval '8 days'", "postgres": "interval '8 days'", "mysql": "INTERVAL 8 DAY", "sqlite": "691200000000",
	}[driver]
	_, err := db.ExecContext(s.Context(), `UPDATE `+table+` SET `+column+` = `+column+` - `+older)
	require.NoError(s, err)
}

// sent is how often a message was given to the outbox.
func (s *scene) sent(id string) int {
	s.Helper()
	return s.one(s.outRaw, `SELECT count(*) FROM millrace_outbox WHERE id = '`+id+`'`)
}

func (s *scene) ordered(id string) bool {
	s.Helper()
	return s.one(s.bizRaw, `SELECT count(*) FROM orders WHERE id = '`+id+`'`) == 1
}

func (s *scene) wants(m *half.Messages, id string, state half.State) half.Info {
	s.Helper()
	info, err := m.Get(s.Context(), id)
	require.NoError(s, err)
	require.Equal(s, state, info.State, "%+v", info)
	return info
}

func (s *scene) awaits(m *half.Messages, id string, state half.State) half.Info {
	s.Helper()
	testenv.Eventually(s, time.Minute, id+" is "+string(state), func() bool {
		info, err := m.Get(s.Context(), id)
		return err == nil && info.State == state
	})
	return s.wants(m, id, state)
}

func msg(id string) *message.Message {
	m := message.NewMessage(id, []byte(strings.Repeat(id, 3)))
	m.Metadata.Set("colour", "red")
	return outbox.WithKey(m, "key of "+id)
}
