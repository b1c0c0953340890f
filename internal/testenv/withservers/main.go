// Command withservers runs a command with the test servers up, and their addresses in its environment:
//
//	go run ./internal/testenv/withservers -- go test ./...
//
// It starts PostgreSQL, MariaDB, Redis and RabbitMQ, except those whose address the environment has
// already; -only names those that are wanted. It ends them when the command has ended. SIGINT and
// SIGTERM go to the command and its children. The exit status is the command's.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/millrace-go/millrace/internal/testenv/servers"
)

func main() {
	only := flag.String("only", "", "the servers that are wanted, separated by commas: postgres, mariadb, redis, rabbitmq")
	flag.Parse()
	status, err := run(*only, flag.Args())
	if err != nil {
		fmt.Fprintf(os.Stderr, "withservers: %v\n", err)
	}
	os.Exit(status)
}

func run(only string, command []string) (status int, err error) {
	if len(command) == 0 {
		return 2, errors.New("no command: withservers [-only postgres,...] -- command [argument ...]")
	}
	kinds, err := wanted(only)
	if err != nil {
		return 2, err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	var pool servers.Pool
	defer func() {
		if cerr := pool.Close(); cerr != nil {
			status, err = max(status, 1), errors.Join(err, cerr)
		}
	}()
	env, err := start(ctx, &pool, kinds)
	if err != nil {
		return 1, err
	}
	return execute(ctx, command, env)
}

func wanted(only string) ([]servers.Kind, error) {
	if only == "" {
		return servers.Kinds(), nil
	}
	var kinds []servers.Kind
	for name := range strings.SplitSeq(only, ",") {
		if !slices.Contains(servers.Kinds(), servers.Kind(name)) {
			return nil, fmt.Errorf("-only: no server is called %q", name)
		}
		kinds = append(kinds, servers.Kind(name))
	}
	return kinds, nil
}

// start starts the servers side by side and returns their addresses.
func start(ctx context.Context, pool *servers.Pool, kinds []servers.Kind) ([]string, error) {
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		env  []string
		errs []error
	)
	for _, k := range kinds {
		if _, ok := servers.Given(k); ok {
			continue
		}
		wg.Go(func() {
			s, err := pool.Start(ctx, k, servers.Options{})
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs = append(errs, err)
				return
			}
			env = append(env, s.Environ(k)...)
		})
	}
	wg.Wait()
	return env, errors.Join(errs...)
}

// execute runs the command in a process group of its own, so that a signal reaches its children too: go
// test ends at SIGTERM without a word to the test binaries.
func execute(ctx context.Context, command, env []string) (int, error) {
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return 1, err
	}
	ended := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case <-ended:
			return
		case <-ctx.Done():
		}
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		}
	})
	err := cmd.Wait()
	close(ended)
	wg.Wait()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return 130, errors.New("interrupted")
	case errors.As(err, &exit):
		return max(exit.ExitCode(), 1), nil // its own words are on the screen already
	case err != nil:
		return 1, err
	}
	return 0, nil
}
