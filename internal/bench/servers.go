package main

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5"

	"github.com/millrace-go/millrace/internal/testenv/servers"
)

// database is where an outbox is.
type database struct {
	Kind servers.Kind // empty: SQLite
	URL  string       // as the driver takes it; of SQLite the path
}

// fleet are the servers of one benchmark. Each is started when it is first wanted.
type fleet struct {
	given      bool // use the addresses in the environment
	statements bool // have PostgreSQL note what statements cost
	pool       servers.Pool

	mu      sync.Mutex
	started map[servers.Kind]servers.Address
	pids    map[servers.Kind]int
	delays  map[string]*delay
	count   int
	run     string
}

func newFleet(given, statements bool) *fleet {
	return &fleet{
		given: given, statements: statements, started: map[servers.Kind]servers.Address{}, pids: map[servers.Kind]int{}, delays: map[string]*delay{},
		run: fmt.Sprintf("b%x", time.Now().UnixNano()&0xffffff),
	}
}

// settings are what a production server would be given. All wait for the disk as they do by default.
var settings = map[servers.Kind][]string{
	servers.Postgres: {"-c", "shared_buffers=512MB", "-c", "max_wal_size=4GB", "-c", "checkpoint_timeout=15min"},
	servers.MariaDB:  {"--innodb-buffer-pool-size=512M", "--innodb-log-file-size=1G"},
	servers.Redis:    {"--auto-aof-rewrite-percentage", "0"},
}

func (f *fleet) server(ctx context.Context, k servers.Kind) (servers.Address, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if a, ok := f.started[k]; ok {
		return a, nil
	}
	if f.given {
		if a, ok := servers.Given(k); ok {
			f.started[k] = a
			return a, nil
		}
	}
	args := settings[k]
	if f.statements && k == servers.Postgres {
		args = append(args[:len(args):len(args)], "-c", "shared_preload_libraries=pg_stat_statements", "-c", "pg_stat_statements.track=all", "-c", "pg_stat_statements.track_planning=on")
	}
	s, err := f.pool.Start(ctx, k, servers.Options{Durable: true, Args: args})
	if err != nil {
		return servers.Address{}, err
	}
	f.started[k] = s.Address
	f.findPID(ctx, k, s.Address)
	return s.Address, nil
}

func (f *fleet) close() error {
	for _, d := range f.delays {
		d.close()
	}
	return f.pool.Close()
}

// name is one that nobody else uses.
func (f *fleet) name(what string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.count++
	return fmt.Sprintf("%s_%s_%d", f.run, what, f.count)
}

// slow is the address of a server behind a network with a round trip of 2 ms, or the address itself.
func (f *fleet) slow(address string, roundTrip time.Duration) (string, error) {
	if roundTrip == 0 {
		return address, nil
	}
	if c, err := mysql.ParseDSN(address); err == nil && !strings.Contains(address, "://") {
		addr, err := f.delayed(c.Addr, roundTrip)
		c.Addr = addr
		return c.FormatDSN(), err
	}
	u, err := url.Parse(address)
	if err != nil {
		return "", fmt.Errorf("the address is not a URL")
	}
	u.Host, err = f.delayed(u.Host, roundTrip)
	return u.String(), err
}

func (f *fleet) delayed(hostPort string, roundTrip time.Duration) (string, error) {
	if _, _, err := net.SplitHostPort(hostPort); err != nil {
		return "", err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	key := fmt.Sprint(hostPort, roundTrip)
	if d, ok := f.delays[key]; ok {
		return d.addr, nil
	}
	d, err := newDelay(hostPort, roundTrip)
	if err != nil {
		return "", err
	}
	f.delays[key] = d
	return d.addr, nil
}

// admin runs a statement beside the databases that are measured.
func (f *fleet) admin(ctx context.Context, statement string) error {
	a, err := f.server(ctx, servers.Postgres)
	if err != nil {
		return err
	}
	conn, err := pgx.Connect(ctx, a.URL)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	_, err = conn.Exec(ctx, statement)
	return err
}

// clone makes a database like another one, which nobody may be connected to.
func (f *fleet) clone(ctx context.Context, template string) (name, address string, err error) {
	name = f.name("db")
	statement := "CREATE DATABASE " + name
	if template != "" {
		statement += " TEMPLATE " + template
	}
	if err := f.admin(ctx, statement); err != nil {
		return "", "", err
	}
	// What was written so far is not to be paid for by whoever is measured next.
	if err := f.admin(ctx, "CHECKPOINT"); err != nil {
		return "", "", err
	}
	address, err = f.address(ctx, name)
	return name, address, err
}

// address is that of a database of PostgreSQL.
func (f *fleet) address(ctx context.Context, name string) (string, error) {
	a, err := f.server(ctx, servers.Postgres)
	if err != nil {
		return "", err
	}
	return servers.PostgresDatabase(a.URL, name)
}

func (f *fleet) drop(ctx context.Context, name string) error {
	return f.admin(ctx, "DROP DATABASE IF EXISTS "+name+" WITH (FORCE)")
}
