package testenv

import (
	"context"
	"crypto/rand"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"

	"github.com/millrace-go/millrace/internal/testenv/servers"
)

// callTimeout is for one call to a server that also serves other tests.
const callTimeout = 2 * time.Minute

// pool holds all servers of this process: they are shared by its tests, and Main ends them.
var pool servers.Pool

// shared are the servers of this process, each started once.
var shared = map[servers.Kind]func() (servers.Address, error){
	servers.Postgres: once(servers.Postgres),
	servers.MariaDB:  once(servers.MariaDB),
	servers.Redis:    once(servers.Redis),
	servers.RabbitMQ: once(servers.RabbitMQ),
}

func once(k servers.Kind) func() (servers.Address, error) {
	return sync.OnceValues(func() (servers.Address, error) {
		if a, ok := servers.Given(k); ok {
			return a, nil
		}
		s, err := pool.Start(context.Background(), k, servers.Options{})
		if err != nil {
			return servers.Address{}, err
		}
		return s.Address, nil
	})
}

func address(t testing.TB, k servers.Kind) servers.Address {
	t.Helper()
	a, err := shared[k]()
	if err != nil {
		t.Fatalf("testenv: %v", err)
	}
	return a
}

// Postgres is the URL of a fresh, empty database, postgres://user:password@host:port/db?sslmode=disable.
// It is dropped when the test ends, with the connections that are left.
func Postgres(t testing.TB) string {
	t.Helper()
	admin := address(t, servers.Postgres).URL
	name := unique()
	run := func(statement string) error {
		return within(func(ctx context.Context) error {
			conn, err := pgx.Connect(ctx, admin)
			if err != nil {
				return err
			}
			defer conn.Close(ctx)
			_, err = conn.Exec(ctx, statement)
			return err
		})
	}
	check(t, "create database", run("CREATE DATABASE "+name))
	t.Cleanup(func() { note(t, "drop database", run("DROP DATABASE IF EXISTS "+name+" WITH (FORCE)")) })
	u, err := servers.PostgresDatabase(admin, name)
	check(t, "address", err)
	return u
}

// MariaDB is the DSN of a fresh, empty database for go-sql-driver,
// user:password@tcp(host:port)/db?parseTime=true. It is dropped when the test ends.
func MariaDB(t testing.TB) string {
	t.Helper()
	return mariaDatabase(t, address(t, servers.MariaDB).URL, true)
}

func mariaDatabase(t testing.TB, admin string, drop bool) string {
	t.Helper()
	name := unique()
	run := func(statement string) error {
		return within(func(ctx context.Context) error {
			db, err := servers.OpenMySQL(admin)
			if err != nil {
				return err
			}
			defer db.Close()
			_, err = db.ExecContext(ctx, statement)
			return err
		})
	}
	check(t, "create database", run("CREATE DATABASE "+name))
	if drop {
		t.Cleanup(func() { note(t, "drop database", run("DROP DATABASE IF EXISTS "+name)) })
	}
	dsn, err := servers.MySQLDatabase(admin, name)
	check(t, "address", err)
	return dsn
}

// Redis is the URL of the shared server, redis://host:port/0. Keys of other tests are in it too: use
// RedisPrefix, and OwnRedis for whatever concerns the whole server.
func Redis(t testing.TB) string {
	t.Helper()
	return address(t, servers.Redis).URL
}

// RedisPrefix is a prefix for the keys of this test. Keys that begin with it, or have it in braces at
// their beginning, are removed when the test ends.
func RedisPrefix(t testing.TB) string {
	t.Helper()
	opts, err := redis.ParseURL(Redis(t))
	check(t, "redis", err)
	prefix := unique() + ":"
	t.Cleanup(func() {
		note(t, "remove keys", within(func(ctx context.Context) error {
			client := redis.NewClient(opts)
			defer client.Close()
			keys := client.Scan(ctx, 0, "*"+prefix+"*", 1000).Iterator()
			for keys.Next(ctx) {
				if err := client.Unlink(ctx, keys.Val()).Err(); err != nil {
					return err
				}
			}
			return keys.Err()
		}))
	})
	return prefix
}

// RabbitMQ is the URL of a fresh virtual host, amqp://user:password@host:port/vhost. It is deleted
// when the test ends, with all that is in it.
func RabbitMQ(t testing.TB) string {
	t.Helper()
	a := address(t, servers.RabbitMQ)
	if a.Admin == "" {
		return a.URL
	}
	name, admin := unique(), servers.NewAdmin(a.Admin)
	check(t, "create vhost", within(func(ctx context.Context) error { return admin.CreateVhost(ctx, name) }))
	t.Cleanup(func() {
		note(t, "delete vhost", within(func(ctx context.Context) error { return admin.DeleteVhost(ctx, name) }))
	})
	u, err := servers.RabbitMQVhost(a.URL, name)
	check(t, "address", err)
	return u
}

// SQLite is the path of a database file that does not exist yet, in the test's own folder.
func SQLite(t testing.TB) string {
	t.Helper()
	return filepath.Join(t.TempDir(), "millrace.db")
}

// unique is a name that a database, a virtual host or a key may begin with.
func unique() string { return "t_" + strings.ToLower(rand.Text()[:16]) }

// within bounds a call to a server. It is not bound to the test's context, which is over in Cleanup.
func within(call func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	return call(ctx)
}

func check(t testing.TB, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("testenv: %s: %v", what, err)
	}
}

// note reports what could not be cleaned up. That is no fault of the code under test.
func note(t testing.TB, what string, err error) {
	if err != nil {
		t.Logf("testenv: %s: %v", what, fmt.Errorf("left behind: %w", err))
	}
}
