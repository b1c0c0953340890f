package forwarder_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	_ "github.com/go-sql-driver/mysql"
	_ "github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"
	_ "modernc.org/sqlite"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/outbox"
)

// database is a kind of database that the tests run on.
type database struct {
	name, driver string
	source       func(t testing.TB) string
}

var (
	postgres = database{"postgres", "pgx", testenv.Postgres}
	mariadb  = database{"mariadb", "mysql", testenv.MariaDB}
	sqlite   = database{"sqlite", "sqlite", func(t testing.TB) string {
		return "file:" + testenv.SQLite(t) + "?_pragma=journal_mode(wal)&_pragma=busy_timeout(5000)"
	}}
	databases = []database{postgres, sqlite, mariadb}
)

// stage is one service's database: a business table that numbers the messages of each key under its
// lock, and the outbox.
type stage struct {
	testing.TB
	database
	dsn string
	raw *sql.DB
	db  *millrace.SQLDB
	box *outbox.Box

	serial    atomic.Int64
	mu        sync.Mutex
	committed map[string]bool
}

const contended = 20 // keys that writers fight for

func newStage(t testing.TB, d database) *stage {
	t.Helper()
	s := &stage{TB: t, database: d, dsn: d.source(t), committed: map[string]bool{}}
	raw, err := sql.Open(d.driver, s.dsn)
	require.NoError(t, err)
	t.Cleanup(func() { _ = raw.Close() })
	raw.SetMaxIdleConns(16)
	s.raw, s.db = raw, millrace.SQL(raw)
	s.box, err = outbox.New(s.db, outbox.Config{})
	require.NoError(t, err)
	require.NoError(t, s.box.Migrate(t.Context()))
	s.exec(`CREATE TABLE counters (name VARCHAR(40) PRIMARY KEY, n BIGINT NOT NULL)`)
	for i := range contended {
		s.exec(fmt.Sprintf(`INSERT INTO counters VALUES ('k%02d', 0)`, i))
	}
	return s
}

func (s *stage) exec(query string) {
	s.Helper()
	_, err := s.raw.ExecContext(context.WithoutCancel(s.Context()), query)
	require.NoError(s, err)
}

func (s *stage) count(table string) (n int) {
	s.Helper()
	require.NoError(s, s.raw.QueryRow(`SELECT count(*) FROM `+table).Scan(&n))
	return n
}

func (s *stage) waiting() int { return s.count("millrace_outbox") }

var errRollback = errors.New("the business changed its mind")

// write commits about n messages from several writers: some of contended keys, numbered in the order of
// commit, most without a key. One transaction in ten is rolled back; its messages are called ghost.
func (s *stage) write(ctx context.Context, n, writers int) {
	var left atomic.Int64
	left.Store(int64(n))
	var group sync.WaitGroup
	for range writers {
		group.Go(func() {
			for left.Load() > 0 && ctx.Err() == nil {
				size := 1 + rand.N(5)
				left.Add(-int64(size))
				s.transaction(ctx, size, rand.N(10) == 0)
			}
		})
	}
	group.Wait()
}

func (s *stage) transaction(ctx context.Context, size int, rollback bool) {
	var ids []string
	err := millrace.InTx(ctx, s.db, func(ctx context.Context, tx *millrace.Tx) error {
		ids = nil
		publish := func(id, key string) error {
			if rollback {
				id = fmt.Sprintf("ghost%d-%s", s.serial.Add(1), id)
			}
			msg := message.NewMessage(id, []byte(`{"n":1}`))
			if key != "" {
				msg = outbox.WithKey(msg, key)
			}
			ids = append(ids, id)
			return s.box.Publish(ctx, "orders", msg)
		}
		if rand.N(3) == 0 {
			key := fmt.Sprintf("k%02d", rand.N(contended))
			if _, err := tx.ExecContext(ctx, `UPDATE counters SET n = n + 1 WHERE name = '`+key+`'`); err != nil {
				return err
			}
			var n int
			if err := tx.QueryRowContext(ctx, `SELECT n FROM counters WHERE name = '`+key+`'`).Scan(&n); err != nil {
				return err
			}
			if err := publish(fmt.Sprintf("%s-%06d", key, n), key); err != nil {
				return err
			}
		}
		for range size {
			if err := publish(fmt.Sprintf("free-%d", s.serial.Add(1)), ""); err != nil {
				return err
			}
		}
		if rollback {
			return errRollback
		}
		return nil
	})
	if err == nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, id := range ids {
			s.committed[id] = true
		}
	} else if !rollback && ctx.Err() == nil {
		s.Errorf("transaction: %v", err)
	}
}

// requireDelivered compares what came with what was committed, and returns the number of duplicates.
func (s *stage) requireDelivered(ids []string) (duplicates int) {
	s.Helper()
	seen, last := map[string]bool{}, map[string]string{}
	for _, id := range ids {
		if strings.HasPrefix(id, "ghost") {
			s.Fatalf("ghost: %s was rolled back and delivered", id)
		}
		if seen[id] {
			duplicates++
			continue
		}
		seen[id] = true
		if id[0] == 'k' {
			if last[id[:3]] >= id {
				s.Fatalf("order of %s: %s came after %s", id[:3], id, last[id[:3]])
			}
			last[id[:3]] = id
		}
	}
	missing := 0
	for id := range s.committed {
		if !seen[id] {
			missing++
		}
	}
	require.Zero(s, missing, "messages lost of %d", len(s.committed))
	require.Len(s, seen, len(s.committed), "delivered, and not known to be committed")
	return duplicates
}

// record is a broker that writes the ids of what it got into a file, each with one write, so that what
// it has confirmed survives the process.
type record struct{ path string }

func (r record) Publish(string, ...*message.Message) error { return errors.New("not used") }
func (r record) Close() error                              { return nil }

func (r record) PublishBatch(ctx context.Context, _ []string, msgs []*message.Message) []error {
	errs := make([]error, len(msgs))
	f, err := os.OpenFile(r.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err == nil {
		defer f.Close()
	}
	for i, msg := range msgs {
		if err != nil {
			errs[i] = err
			continue
		}
		_, errs[i] = f.WriteString(msg.UUID + "\n")
	}
	return errs
}

func (r record) ids(t testing.TB) []string {
	t.Helper()
	data, err := os.ReadFile(r.path)
	if os.IsNotExist(err) {
		return nil
	}
	require.NoError(t, err)
	return strings.Fields(string(data))
}
