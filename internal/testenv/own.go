package testenv

import (
	"context"
	"testing"

	"github.com/millrace-go/millrace/internal/testenv/servers"
)

// Server is a server of one test's own, that it may kill, freeze and start again. Port and data stay
// the same. It is ended with the test. Methods fail the test when they cannot do what they say; they
// are for one goroutine at a time.
type Server struct {
	// URL is as Postgres, MariaDB, Redis and RabbitMQ return it. The database or virtual host is there.
	URL string
	// Admin is the URL of RabbitMQ's management API, with user and password.
	Admin string

	t testing.TB
	s *servers.Server
}

// OwnPostgres starts a PostgreSQL that waits for the disk at each commit.
func OwnPostgres(t testing.TB) *Server {
	t.Helper()
	return own(t, servers.Postgres)
}

// OwnMariaDB starts a MariaDB that waits for the disk at each commit.
func OwnMariaDB(t testing.TB) *Server {
	t.Helper()
	s := own(t, servers.MariaDB)
	s.URL = mariaDatabase(t, s.URL, false)
	return s
}

// OwnRedis starts a Redis that appends to its log, syncs it each second, and evicts nothing. Args are
// added to its command line and win over these settings.
func OwnRedis(t testing.TB, args ...string) *Server {
	t.Helper()
	return own(t, servers.Redis, args...)
}

// OwnRabbitMQ starts a RabbitMQ. That takes some 5 s, and as long again for each Start.
//
// RabbitMQ 3.10 forgets a quorum queue that was declared in the last seconds before Kill: the file with
// their names is written late. Declare them early, or Restart in between.
func OwnRabbitMQ(t testing.TB) *Server {
	t.Helper()
	return own(t, servers.RabbitMQ)
}

func own(t testing.TB, k servers.Kind, args ...string) *Server {
	t.Helper()
	s, err := pool.Start(context.Background(), k, servers.Options{Durable: true, Args: args})
	check(t, "own server", err)
	t.Cleanup(func() { note(t, "end server", s.Close()) })
	return &Server{URL: s.URL, Admin: s.Admin, t: t, s: s}
}

// Kill ends all processes of the server with SIGKILL, and returns when they are gone.
func (s *Server) Kill() { s.t.Helper(); check(s.t, "kill", s.s.Kill()) }

// Stop shuts the server down as its operator would, and returns when it is down.
func (s *Server) Stop() { s.t.Helper(); check(s.t, "stop", s.s.Stop()) }

// Pause freezes the server: connections stay open, new ones too, and nothing answers.
func (s *Server) Pause() { s.t.Helper(); check(s.t, "pause", s.s.Pause()) }

// Resume ends Pause.
func (s *Server) Resume() { s.t.Helper(); check(s.t, "resume", s.s.Resume()) }

// Start starts the server after Kill or Stop, and returns when it answers.
func (s *Server) Start() {
	s.t.Helper()
	check(s.t, "start", s.s.Start(context.Background()))
}

// Restart is Stop and Start.
func (s *Server) Restart() {
	s.t.Helper()
	s.Stop()
	s.Start()
}
