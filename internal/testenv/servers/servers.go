// Package servers starts real databases and brokers for tests, and stops them whatever happens to
// the process that wanted them.
//
// A server comes from the first of these that is there: binaries installed on this machine, started
// on a free loopback port with their data in a temporary folder; or a container, by the repository's
// compose.yaml. Addresses that the user gives in the environment are looked up by Given, before
// anything is started.
//
// # Caveats
//
// Everything that a Pool started ends when its process ends, also by SIGKILL, because a guard (a
// shell that waits for the end of a pipe) outlives the process for a moment. If somebody kills the
// guard as well, servers stay.
package servers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"
)

// Kind is a product.
type Kind string

// The products that can be started.
const (
	Postgres Kind = "postgres"
	MariaDB  Kind = "mariadb"
	Redis    Kind = "redis"
	RabbitMQ Kind = "rabbitmq"
)

// Kinds are all products.
func Kinds() []Kind { return []Kind{Postgres, MariaDB, Redis, RabbitMQ} }

// Variable is the environment variable with a server's address: a URL, or a DSN of go-sql-driver for
// MariaDB. The user must be one who may create databases.
func (k Kind) Variable() string {
	switch k {
	case MariaDB:
		return "MILLRACE_TEST_MARIADB_DSN"
	case Redis:
		return "MILLRACE_TEST_REDIS_URL"
	case RabbitMQ:
		return "MILLRACE_TEST_RABBITMQ_URL"
	default:
		return "MILLRACE_TEST_POSTGRES_URL"
	}
}

// AdminVariable is the environment variable with the URL of RabbitMQ's management API, user and
// password in it.
const AdminVariable = "MILLRACE_TEST_RABBITMQ_ADMIN"

// startTimeout is for the slowest server on a machine that is busy with other tests.
const startTimeout = 3 * time.Minute

// Options is how a server is started.
type Options struct {
	// Durable keeps the settings under which a commit survives a crash of the machine. Without it,
	// what a server confirmed survives the death of its processes, but it does not wait for the disk. RabbitMQ's
	// memory limit is its own then, else a small one.
	Durable bool
	// Args are added to the server's command line.
	Args []string
}

// Address is where a server answers.
type Address struct {
	// URL is as the drivers take it, with user and password.
	URL string
	// Admin is the URL of RabbitMQ's management API; empty for other products, and for a RabbitMQ
	// of the user's that does not tell it.
	Admin string
}

// Given is the address in the environment, and whether there is one.
func Given(k Kind) (Address, bool) {
	a := Address{URL: os.Getenv(k.Variable())}
	if k == RabbitMQ {
		a.Admin = os.Getenv(AdminVariable)
	}
	return a, a.URL != ""
}

// Environ is the address as entries for the environment of a child, which finds them by Given.
func (a Address) Environ(k Kind) []string {
	env := []string{k.Variable() + "=" + a.URL}
	if a.Admin != "" {
		env = append(env, AdminVariable+"="+a.Admin)
	}
	return env
}

// Server is one running server. Its methods are for one goroutine at a time. Port and data stay the
// same from one Start to the next.
type Server struct {
	Address
	machine machine
	ping    func(ctx context.Context) error
}

// machine is what a server runs on: processes of this machine, or a container.
type machine interface {
	start(ctx context.Context) error
	alive() error // says why it ended, if it did
	kill() error
	stop() error // graceful, and waits
	pause() error
	resume() error
	remove() error // after kill: whatever else there is, and the data
}

// Start starts the server if it does not run, and returns when it answers.
func (s *Server) Start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := s.machine.start(ctx); err != nil {
		return err
	}
	return s.ready(ctx)
}

// Kill ends all processes of the server at once (SIGKILL) and returns when they are gone.
func (s *Server) Kill() error { return s.machine.kill() }

// Stop shuts the server down the way its operator would.
func (s *Server) Stop() error { return s.machine.stop() }

// Close kills the server and removes its data. Pool.Close does it too, for all.
func (s *Server) Close() error {
	err := s.machine.kill()
	return errors.Join(err, s.machine.remove())
}

// Pause freezes the server (SIGSTOP): connections stay open and nothing answers.
func (s *Server) Pause() error { return s.machine.pause() }

// Resume ends Pause.
func (s *Server) Resume() error { return s.machine.resume() }

// ready waits until the server answers as the one that we started.
func (s *Server) ready(ctx context.Context) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if err := s.machine.alive(); err != nil {
			return err
		}
		once, cancel := context.WithTimeout(ctx, 20*time.Second)
		err := s.ping(once)
		cancel()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("does not answer: %w", err), ctx.Err())
		case <-tick.C:
		}
	}
}
