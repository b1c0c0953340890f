package servers

import (
	"context"
	"fmt"
	"net/url"
	"strconv"
	"syscall"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-go/millrace/internal/testenv/port"
)

var (
	postgresFolders = []string{"/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql*/bin"}
	postgresBinary  = binary{names: []string{"postgres"}, folders: postgresFolders}
	initdbBinary    = binary{names: []string{"initdb"}, folders: postgresFolders}
)

var postgres = product{
	kind:     Postgres,
	binaries: []binary{postgresBinary, initdbBinary},
	users:    []string{"postgres"},
	install:  "apt-get install postgresql",
	quit:     syscall.SIGQUIT, // ends its processes too
	stop:     syscall.SIGINT,  // "fast": rolls back what is open
	create:   createPostgres,
	command:  postgresCommand,
	address: func(n *node) Address {
		u := url.URL{
			Scheme:   "postgres",
			User:     url.UserPassword(account, n.password),
			Host:     port.Address(n.port),
			Path:     "/postgres",
			RawQuery: "sslmode=disable",
		}
		return Address{URL: u.String()}
	},
	ping: func(ctx context.Context, _ *node, a Address) error {
		conn, err := pgx.Connect(ctx, a.URL)
		if err != nil {
			return err
		}
		return conn.Close(ctx)
	},
}

func createPostgres(ctx context.Context, n *node) error {
	if err := n.write("password", n.password); err != nil {
		return err
	}
	return n.prepare(ctx, initdbBinary.path(), "-D", n.path("data"), "-U", account, "-E", "UTF8",
		"--no-locale", "--no-sync", "--auth=scram-sha-256", "--pwfile="+n.path("password"))
}

func postgresCommand(n *node) []process {
	argv := []string{postgresBinary.path(), "-D", n.path("data"), "-p", strconv.Itoa(n.port)}
	settings := []string{
		"listen_addresses=127.0.0.1",
		"unix_socket_directories=",
		"max_connections=400",
		"shared_buffers=64MB",
		"log_min_messages=warning",
		"log_min_error_statement=panic", // statements of failing tests would fill the log
	}
	if !n.opts.Durable {
		// Nothing waits for the disk. synchronous_commit stays on: code under test looks at it, and
		// a commit still survives kill -9.
		settings = append(settings, "fsync=off", "full_page_writes=off")
	}
	for _, s := range settings {
		argv = append(argv, "-c", s)
	}
	return []process{{argv: append(argv, n.opts.Args...)}}
}

// PostgresDatabase is the URL with another database.
func PostgresDatabase(address, name string) (string, error) {
	u, err := url.Parse(address)
	if err != nil {
		return "", fmt.Errorf("%s is not a URL", Postgres.Variable()) // its text may hold the password
	}
	u.Path = "/" + name
	return u.String(), nil
}
