// Package testenv gives tests real databases and brokers, and child processes that can be killed.
//
// A package that uses it hands its tests over:
//
//	func TestMain(m *testing.M) { testenv.Main(m) }
//
// and asks for what a test needs:
//
//	url := testenv.Postgres(t) // a fresh, empty database
//
// A server is started when the first test asks for it, shared by the tests of the process, and ended
// with the process, however that ends. The launcher internal/testenv/withservers starts servers once
// for many packages. Tests are kept apart by database, virtual host or key prefix.
//
// # Where servers come from
//
// In this order: the address in MILLRACE_TEST_POSTGRES_URL, MILLRACE_TEST_MARIADB_DSN,
// MILLRACE_TEST_REDIS_URL, MILLRACE_TEST_RABBITMQ_URL; binaries installed on this machine, run on a
// free loopback port with data in a temporary folder; Docker Compose. If there is none of them the
// test fails, and says what to install. Servers that a test may kill (OwnPostgres and so on) are never
// the ones in the environment.
//
// # Caveats
//
// A RabbitMQ in the environment needs its management API in MILLRACE_TEST_RABBITMQ_ADMIN
// (http://user:password@host:15672), by which each test gets a virtual host. Without it all tests use
// the virtual host of the URL: their exchanges and queues stay there, and tests that choose the same
// names disturb each other.
//
// Shared servers do not wait for the disk. They keep what they confirmed when a process is killed, not
// when the machine loses power.
package testenv

import (
	"fmt"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// Option is for Main.
type Option func(*options)

type options struct {
	roles map[string]func()
	leaks []goleak.Option
}

// Role registers what a child process does that was made by Child under this name. The child exits
// with status 0 when run returns.
func Role(name string, run func()) Option {
	return func(o *options) { o.roles[name] = run }
}

// IgnoreLeak excuses goroutines of a dependency that cannot be stopped. The reason belongs beside it.
func IgnoreLeak(opt goleak.Option) Option {
	return func(o *options) { o.leaks = append(o.leaks, opt) }
}

// Main runs the tests of a package, ends the servers that they started, fails if a goroutine is left,
// and exits. It must be the only call in TestMain.
func Main(m *testing.M, opts ...Option) {
	o := options{roles: make(map[string]func())}
	for _, opt := range opts {
		opt(&o)
	}
	if name := os.Getenv(roleVariable); name != "" {
		os.Exit(play(name, o.roles))
	}
	code := m.Run()
	if err := pool.Close(); err != nil {
		fmt.Fprintf(os.Stderr, "testenv: stop servers: %v\n", err)
		code = max(code, 1)
	}
	if code == 0 {
		if err := goleak.Find(o.leaks...); err != nil {
			fmt.Fprintf(os.Stderr, "testenv: goroutines left after the tests: %v\n", err)
			code = 1
		}
	}
	os.Exit(code)
}

// Full tells whether tests run with their full counts: MILLRACE_TEST_FULL is set.
func Full() bool { return os.Getenv("MILLRACE_TEST_FULL") != "" }

// Eventually waits until cond is true, looking each 5 ms, and fails the test after timeout, saying
// what it waited for. Cond runs in the test's goroutine, so it may use t.
func Eventually(t testing.TB, timeout time.Duration, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(timeout)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for: %s", timeout, what)
		}
		<-tick.C
	}
}
